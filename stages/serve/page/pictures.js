import { copyOf } from "./dom.js";

/**
 * The user's pictures. Each has a file, a number from 1, the phrase that was chosen for it, and the same phrase once
 * more, or "" while the sentence does not have it.
 */
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

  /** Add a picture; it is selected unless the selected one still waits for its word. */
  add(file) {
    const picture = { file, address: URL.createObjectURL(file), chosen: "", phrase: "" };
    picture.item = copyOf("picture-template");
    const [choose, remove] = picture.item.querySelectorAll("button");
    choose.querySelector("img").src = picture.address;
    choose.addEventListener("click", () => this.select(picture));
    remove.addEventListener("click", () => this.remove(picture));
    this.all.push(picture);
    this.list.append(picture.item);
    this.select(this.selected && !this.selected.phrase ? this.selected : picture);
    return picture;
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

  /** Let a picture stand for a phrase; pictures whose phrases overlap with it lose theirs. */
  assign(picture, phrase, overlaps) {
    const others = this.all.filter((other) => other !== picture && overlaps(other.chosen));
    for (const other of others) other.chosen = other.phrase = "";
    picture.chosen = picture.phrase = phrase;
    this.#show();
  }

  /** Look for the phrases in a new sentence. They are not forgotten: words come back while a sentence is rewritten. */
  find(isThere) {
    for (const picture of this.all) picture.phrase = isThere(picture.chosen) ? picture.chosen : "";
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
