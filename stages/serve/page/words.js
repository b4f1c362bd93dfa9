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
  const was = chosen.has(number);
  if (was) chosen.delete(number);
  else chosen.add(number);
  const near = (step) => {
    let end = number;
    while (chosen.has(end + step)) end += step;
    return end;
  };
  const [first, last] = [near(-1), near(1)];
  if (!was) return sentence.slice(words[first].start, words[last].end);
  if (first < number && last > number) return "";
  if (first === last) return "";
  const [from, to] = first < number ? [first, number - 1] : [number + 1, last];
  return sentence.slice(words[from].start, words[to].end);
}
