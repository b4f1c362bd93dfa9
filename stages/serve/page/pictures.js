import { copyOf } from "./dom.js";

/** The user's pictures. Each has a file, a number from 1, and the phrase of the sentence that it stands for, or "". */
export class Pictures {
  /** `changed` is called after each change. */
  constructor(list, changed) {
    this.list = list;
    this.changed = changed;
    this.all = [];
    this.selected = null;
  }

  get used() {
    return this.all.filter((picture) => picture.phrase);
  }

  add(file, phrase = "") {
    const picture = { file, address: URL.createObjectURL(file), phrase: "", item: copyOf("picture-template") };
    const [choose, remove] = picture.item.querySelectorAll("button");
    choose.querySelector("img").src = picture.address;
    choose.addEventListener("click", () => this.select(picture));
    remove.addEventListener("click", () => this.remove(picture));
    this.all.push(picture);
    this.list.append(picture.item);
    if (phrase) this.assign(picture, phrase);
    this.select(phrase || !this.selected || this.selected.phrase ? picture : this.selected);
  }

  remove(picture) {
    const place = this.all.indexOf(picture);
    this.all.splice(place, 1);
    picture.item.remove();
    URL.revokeObjectURL(picture.address);
    const next = this.all[Math.min(place, this.all.length - 1)] ?? null;
    this.select(this.selected === picture ? next : this.selected);
    (next?.item.querySelector("button") ?? document.getElementById("files")).focus();
  }

  select(picture) {
    this.selected = picture;
    this.#show();
  }

  /** Let a picture stand for a phrase, which no other picture keeps. */
  assign(picture, phrase, overlaps = (other) => other === phrase) {
    for (const other of this.all) if (other !== picture && overlaps(other.phrase)) other.phrase = "";
    picture.phrase = phrase;
    this.#show();
  }

  /** Take the phrases that are no longer in the sentence from their pictures. */
  keepPhrases(isThere) {
    for (const picture of this.all) if (!isThere(picture.phrase)) picture.phrase = "";
    this.#show();
  }

  #show() {
    this.all.forEach((picture, place) => showPicture(picture, place + 1, picture === this.selected));
    this.changed();
  }
}

function showPicture(picture, number, isSelected) {
  picture.number = number;
  const [choose, remove] = picture.item.querySelectorAll("button");
  const state = picture.phrase || (isSelected ? "click its word" : "not used");
  picture.item.dataset.subject = (number - 1) % 6;
  picture.item.classList.toggle("unused", !picture.phrase);
  choose.setAttribute("aria-pressed", isSelected);
  choose.setAttribute("aria-label", `Picture ${number}: ${state}`);
  choose.querySelector(".number").textContent = number;
  choose.querySelector(".word").textContent = state;
  remove.setAttribute("aria-label", `Remove picture ${number}`);
}
