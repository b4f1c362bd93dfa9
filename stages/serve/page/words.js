const JOINED = /^[\s\p{Pd}'’]*$/u; // what may stand between the words of a phrase
const segmenter = new Intl.Segmenter(undefined, { granularity: "word" });

/** The words of a sentence, each with its text, start and end; also in scripts without spaces. */
export function wordsOf(sentence) {
  return [...segmenter.segment(sentence)]
    .filter((part) => part.isWordLike)
    .map(({ segment, index }) => ({ text: segment, start: index, end: index + segment.length }));
}

/** The numbers of the words that belong to a phrase, wherever it occurs, in upper or lower case. */
export function occurrences(words, phrase) {
  const parts = wordsOf(phrase).map((part) => part.text.toLowerCase());
  const found = new Set();
  for (let start = 0; parts.length && start + parts.length <= words.length; start++) {
    const fits = parts.every((part, offset) => words[start + offset].text.toLowerCase() === part);
    if (fits) parts.forEach((_, offset) => found.add(start + offset));
  }
  return found;
}

/** The phrase after a click on a word: the word joins its neighbours, leaves the phrase, or replaces it. */
export function phraseAfterClick(sentence, words, phrase, number) {
  const chosen = occurrences(words, phrase);
  const isJoined = (left) => JOINED.test(sentence.slice(words[left].end, words[left + 1].start));
  let [first, last] = [number, number];
  while (chosen.has(first - 1) && isJoined(first - 1)) first--;
  while (chosen.has(last + 1) && isJoined(last)) last++;
  if (chosen.has(number)) {
    if ((number === first) === (number === last)) return ""; // the only word, or one in the middle
    if (number === first) first++;
    else last--;
  }
  return sentence.slice(words[first].start, words[last].end);
}
