import { element } from "./dom.js";
import { listenForFiles } from "./files.js";
import { Pictures } from "./pictures.js";
import { Round } from "./rounds.js";
import { keepKey, listModels, modelTitle, pageFile, paint } from "./server.js";
import { occurrences, phraseAfterClick, wordsOf } from "./words.js";

const NEW_SEEDS = 1_000_000; // few digits are easy to read and to type
const UNAUTHORIZED = 401;

const concepts = new Map(); // by the names of their models
const sentence = element("sentence");
const pictures = new Pictures(element("pictures"), showWords);
let words = [];
let painting = null; // what stops the requests that are running

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

function readSentence() {
  words = wordsOf(sentence.value);
  element("words").replaceChildren(...words.map(wordButton));
  pictures.find((phrase) => occurrences(words, phrase).size > 0);
}

function wordButton(word, number) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(word.text, document.createElement("b"));
  button.addEventListener("click", () => chooseWord(number));
  return button;
}

function chooseWord(number) {
  const picture = pictures.selected;
  const phrase = phraseAfterClick(sentence.value, words, picture.phrase, number);
  assign(picture, phrase);
  const next = pictures.all.find((other) => !other.phrase);
  if (phrase && next) pictures.select(next);
}

function assign(picture, phrase) {
  const taken = occurrences(words, phrase);
  pictures.assign(picture, phrase, (other) => !occurrences(words, other).isDisjointFrom(taken));
}

/** Show which words are whose; called whenever pictures or words change. */
function showWords() {
  const picture = pictures.selected;
  element("words").hidden = !picture;
  element("example").hidden = Boolean(picture);
  element("hint").textContent = picture
    ? `Click the word or words that picture ${picture.number} stands for.`
    : "Without pictures, the sentence alone is painted.";
  const owners = new Map();
  for (const one of pictures.used) for (const number of occurrences(words, one.phrase)) owners.set(number, one);
  [...element("words").children].forEach((button, number) => showWord(button, owners.get(number), words[number].text));
}

function showWord(button, owner, text) {
  if (owner) button.dataset.subject = owner.item.dataset.subject;
  else delete button.dataset.subject;
  button.querySelector("b").textContent = owner?.number ?? "";
  button.setAttribute("aria-pressed", Boolean(owner));
  button.setAttribute("aria-label", owner ? `${text}, picture ${owner.number}` : text);
}

function whatToPaint() {
  const concept = element("concept").value;
  const dci = concept && element("dci").checked;
  const seed = element("hold").checked && element("seed").value;
  return {
    prompt: sentence.value.trim(),
    seed: seed ? Number(seed) : Math.floor(Math.random() * NEW_SEEDS),
    steps: element("steps").value ? Number(element("steps").value) : undefined,
    subjects: pictures.used.map(({ file, phrase }) => ({ file, word: phrase })),
    ...(concept && { model: concept }),
    ...(dci && { dci_lambda: Number(element("lambda").value) }),
  };
}

/** What keeps the form from being sent, as a sentence, and the control that changes it. */
function whatIsMissing() {
  const wrong = ["seed", "steps"].map(element).find((input) => !input.checkValidity());
  if (!sentence.value.trim()) return ["Write a sentence first.", sentence];
  if (wrong) return [wrong.validationMessage, wrong];
  if (pictures.all.length && !pictures.used.length) {
    return ["Click the word that your picture stands for, or remove the picture.", element("words").firstElementChild];
  }
  return null;
}

async function start() {
  if (painting) return;
  const missing = whatIsMissing();
  if (missing) {
    say(missing[0], true);
    missing[1]?.focus();
    return;
  }
  const asked = whatToPaint();
  element("seed").value = asked.seed;
  setPainting(new AbortController());
  say("Painting…");
  const started = performance.now();
  const failures = await paintRound(asked);
  setPainting(null);
  if (failures.length) explain(failures[0]);
  else say(`Painted in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
}

function setPainting(controller) {
  painting = controller;
  element("paint").setAttribute("aria-disabled", Boolean(controller));
  if (document.activeElement === element("cancel")) element("paint").focus(); // before it is hidden
  element("cancel").hidden = !controller;
}

/** Paint the figures of a round beside each other; returns the errors. */
async function paintRound(asked) {
  const phrase = asked.subjects.length === 1 ? asked.subjects[0].word : "";
  const round = new Round(asked.prompt, (file) => takeFurther(file, phrase));
  const { model, dci_lambda, ...plain } = asked;
  const isPlain = !asked.subjects.length && !model;
  const requests = [[isPlain ? "Text only" : titleOf(asked), asked]];
  if (element("compare").checked && !isPlain) requests.push(["Text only", { ...plain, subjects: [] }]);
  const results = await Promise.allSettled(requests.map(([title, request]) => paintFigure(round, title, request)));
  return results.filter((result) => result.reason).map((result) => result.reason);
}

const titleOf = ({ subjects, model }) =>
  subjects.length ? `With your picture${subjects.length > 1 ? "s" : ""}` : `With ${model}`;

async function paintFigure(round, title, request) {
  const figure = round.addFigure(title, request.seed);
  try {
    for await (const event of paint(request, painting.signal)) round.show(figure, event);
  } catch (error) {
    round.drop(figure);
    throw error;
  }
}

function explain(error) {
  if (error.name === "AbortError") return say("Cancelled.");
  say(error.message, true);
  if (error.status === UNAUTHORIZED) askForKey();
}

function askForKey() {
  element("key-form").hidden = false;
  element("key").focus();
}

function takeFurther(file, phrase) {
  const picture = pictures.add(file);
  if (occurrences(words, phrase).size) assign(picture, phrase);
  pictures.select(picture);
  say(`The result is picture ${picture.number}${picture.phrase && ` and stands for “${picture.phrase}”`}.`);
  sentence.focus();
}

async function showModels() {
  try {
    element("model").textContent = await modelTitle();
    concepts.clear();
    for (const model of await listModels()) if (model.concept) concepts.set(model.id, model);
    element("concept").replaceChildren(new Option("None", ""), ...[...concepts.keys()].map((id) => new Option(id)));
    element("concept-fields").hidden = !concepts.size;
  } catch (error) {
    explain(error);
  }
}

function chooseConcept() {
  const concept = concepts.get(element("concept").value);
  element("dci").disabled = !concept;
  showLambda();
  if (concept) nameInSentence(concept.placeholder.split(", ")[0], concept.word.split(", ")[0]);
}

/** Put the placeholder before the class word, unless the sentence has it already. */
function nameInSentence(placeholder, word) {
  if (sentence.value.toLowerCase().includes(placeholder.toLowerCase())) return;
  const found = words.find(({ text }) => text.toLowerCase() === word.toLowerCase());
  if (!found) return say(`Write “${placeholder} ${word}” where the concept is to be.`);
  sentence.value = `${sentence.value.slice(0, found.start)}${placeholder} ${sentence.value.slice(found.start)}`;
  readSentence();
}

function showLambda() {
  element("lambda").disabled = element("dci").disabled || !element("dci").checked;
  element("lambda-value").textContent = element("lambda").value;
}

function listen() {
  element("form").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  sentence.addEventListener("input", readSentence);
  sentence.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    start();
  });
  element("cancel").addEventListener("click", () => painting.abort());
  element("seed").addEventListener("input", () => (element("hold").checked = Boolean(element("seed").value)));
  element("concept").addEventListener("change", chooseConcept);
  element("dci").addEventListener("change", showLambda);
  element("lambda").addEventListener("input", showLambda);
  element("example").addEventListener("click", async () => {
    pictures.add(await pageFile("example.png", "image/png"));
    element("words").firstElementChild?.focus();
  });
  element("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepKey(element("key").value);
    event.target.hidden = true;
    say("The key is kept until you close this tab.");
    element("paint").focus();
    showModels();
  });
}

listenForFiles(element("files"), (file) => pictures.add(file), (message) => say(message, true));
listen();
readSentence();
showModels();
