import { copyOf, element } from "./dom.js";

const MOST_ROUNDS = 12;

/** A round of painting: one or two figures beside each other, above the earlier rounds. */
export class Round {
  /** `takeFurther` is called with a finished picture that is to be the next subject. */
  constructor(sentence, takeFurther) {
    this.article = copyOf("round-template");
    this.article.querySelector("h3").textContent = sentence;
    this.sentence = sentence;
    this.takeFurther = takeFurther;
    const rounds = element("rounds");
    rounds.querySelector(".empty")?.remove();
    rounds.prepend(this.article);
    while (rounds.children.length > MOST_ROUNDS) forget(rounds.lastElementChild);
  }

  addFigure(title, seed) {
    const figure = copyOf("figure-template");
    figure.querySelector("figcaption").textContent = `${title}, seed ${seed}`;
    figure.querySelector("img").alt = `Preview: ${this.sentence}`;
    this.article.querySelector(".figures").append(figure);
    this.article.scrollIntoView({ block: "nearest" });
    return figure;
  }

  /** Show a preview or the finished picture of an event. */
  show(figure, event) {
    const [image, mask, progress] = ["img", ".mask", "progress"].map((part) => figure.querySelector(part));
    const file = fileOf(event.b64_json, `realword-${event.seed}.png`);
    replaceAddress(image, file);
    image.hidden = false;
    if (event.mask_b64_json) showMask(mask, fileOf(event.mask_b64_json, "mask.png"));
    if (event.partial_image_index === undefined) this.#finish(figure, file, image);
    else progress.value = event.partial_image_index + 1;
  }

  /** Take away what was not finished. */
  drop(figure) {
    forget(figure);
    if (!this.article.querySelector("figure")) this.article.remove();
  }

  #finish(figure, file, image) {
    const [download, further] = figure.querySelectorAll("a, button");
    image.alt = `Painted: ${this.sentence}`;
    download.href = image.src;
    download.download = file.name;
    further.addEventListener("click", () => this.takeFurther(file));
    figure.querySelector("progress").remove();
    figure.querySelector(".actions").hidden = false;
  }
}

function fileOf(base64, name) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new File([bytes], name, { type: "image/png" });
}

function replaceAddress(image, file) {
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
}

function showMask(mask, file) {
  URL.revokeObjectURL(mask.dataset.address);
  mask.dataset.address = URL.createObjectURL(file);
  mask.style.maskImage = `url(${mask.dataset.address})`;
  mask.hidden = false;
}

function forget(part) {
  for (const image of part.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  for (const mask of part.querySelectorAll(".mask")) URL.revokeObjectURL(mask.dataset.address);
  part.remove();
}
