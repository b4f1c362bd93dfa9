"""Which prompts an answer contains."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.answers import read_answer
from prompts.reasoning import without_reasoning
from prompts.schema import RichPrompt, RichPrompts

SEA, HOME = "a [v] mug at sea", "a [v] mug at home"
BOTH = [SEA, HOME]
OBJECTS = [{"prompt": prompt, "variation": "background"} for prompt in BOTH]
ANSWER = json.dumps({"prompts": OBJECTS})
LIST = json.dumps(BOTH)


def texts(answer: str) -> list[str]:
    return [prompt.prompt for prompt in read_answer(answer, "style")]


strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: without_reasoning(text) == text  # only an answer that is JSON throughout may hold such marks
)
prompt_lists = st.lists(
    st.builds(RichPrompt, prompt=strings, variation=st.sampled_from(["style", "action"])), max_size=6
)


@given(prompts=prompt_lists, before=st.text("abc `{[:,\n", max_size=12), cut=st.integers(0, 40))
def test_every_complete_prompt_is_found_in_any_surroundings(prompts: list[RichPrompt], before: str, cut: int) -> None:
    answer = RichPrompts(prompts=prompts).model_dump_json()
    assert read_answer(answer, "background") == prompts
    assert read_answer(f"{before}\n{answer}\n```", "background") == prompts
    shortened = read_answer(answer[: len(answer) - cut], "background")
    assert shortened == prompts[: len(shortened)]


@settings(max_examples=40)
@given(text=st.text(max_size=60) | st.text("{}[]\"',:\\<think>/ \n", max_size=60))
def test_nonsense_is_not_an_error(text: str) -> None:
    assert isinstance(read_answer(text, "style"), list)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(f"Sure!\n```json\n{ANSWER}\n```\nDo you like [v] mugs?", id="fence"),
        pytest.param(f"~~~\n{ANSWER}", id="unclosed fence"),
        pytest.param(f"Prompts with [v] mug and [V]: {ANSWER} [1]", id="prose with brackets"),
        pytest.param(f"\ufeff\u200b{ANSWER}", id="byte order mark"),
        pytest.param(LIST, id="list of strings"),
        pytest.param(json.dumps(OBJECTS), id="list of objects"),
        pytest.param(json.dumps({"prompts": BOTH}), id="strings in the object"),
        pytest.param("\n".join(json.dumps(item) for item in OBJECTS), id="JSON lines"),
        pytest.param("".join(json.dumps(item) for item in OBJECTS), id="objects without commas"),
        pytest.param("\n".join(json.dumps({"prompts": [item]}) for item in OBJECTS), id="two whole answers"),
        pytest.param(json.dumps({"1": SEA, "2": HOME}), id="numbers as keys"),
        pytest.param(json.dumps({"prompt_1": {"Text": SEA}, "prompt_2": {"Text": HOME}}), id="numbered objects"),
        pytest.param(json.dumps({SEA: "background", HOME: "style"}), id="prompts as keys"),
        pytest.param(json.dumps({"background": [SEA], "style": [HOME]}), id="variations as keys"),
        pytest.param(json.dumps([{"Prompt": SEA}, {"caption": HOME}]), id="other names"),
        pytest.param(json.dumps({"status": "ok", "result": {"data": {"Prompts": OBJECTS}}}), id="wrapped"),
        pytest.param(json.dumps({"thinking": f"perhaps '{SEA} no'", "prompts": BOTH}), id="reasoning beside it"),
        pytest.param(json.dumps({"drafts": ["a [v] mug no"], "final": BOTH}), id="drafts beside it"),
        pytest.param(json.dumps({"items": [{"sentence": SEA, "negative_prompt": "a [v] mug no"}, HOME]}), id="mixed"),
        pytest.param(json.dumps({"description": "two prompts", "items": BOTH}), id="with a description"),
        pytest.param(json.dumps(ANSWER), id="JSON in a string"),
        pytest.param(json.dumps({"prompts": json.dumps(OBJECTS)}), id="JSON in a field"),
        pytest.param(json.dumps({"role": "assistant", "content": ANSWER}), id="a message"),
        pytest.param(ANSWER.replace('"', '\\"'), id="escaped quotes"),
        pytest.param(ANSWER.replace('"', "&quot;"), id="escaped as HTML"),
        pytest.param(f'["{SEA}", "{HOME}",]', id="trailing comma"),
        pytest.param(f'{{"prompts": [{{"prompt": "{SEA}",}}, {{"prompt": "{HOME}",}},],}}', id="trailing commas"),
        pytest.param(f'["{SEA}" "{HOME}"\n]'.replace('" "', '"\n"'), id="missing comma"),
        pytest.param(f'[{{"prompt": "{SEA}" "variation": "style"}} {{"prompt": "{HOME}"}}]', id="missing commas"),
        pytest.param(f'[ // two\n"{SEA}", /* and */ "{HOME}" # done\n]', id="comments"),
        pytest.param(str({"prompts": OBJECTS, "score": None, "done": True}), id="Python"),
        pytest.param(f"[{{prompt: '{SEA}', score: NaN}}, {{prompt: '{HOME}', n: .5}}]", id="JavaScript"),
        pytest.param(f"{{“prompts”: [“{SEA}”, “{HOME}”]}}", id="curly quotes"),
        pytest.param(f'["{SEA}", "{HOME}", ...]', id="dots"),
        pytest.param(f'{{"prompts": ["{SEA}", "{HOME}"}}', id="missing bracket"),
        pytest.param(f'{{"prompts": ["{SEA}", "{HOME}", "a [v] mug on the', id="cut within a string"),
        pytest.param(f'{{"prompts": [{{"prompt": "{SEA}"}}, {{"prompt": "{HOME}"}}, {{"prompt": "a [v]', id="cut"),
        pytest.param(f"1. {SEA}\n2. **{HOME}**", id="numbered list"),
        pytest.param(f'Here you are:\n\n- "{SEA}"\n- Prompt 2: "{HOME}"\n\nEnjoy!', id="bulleted list"),
        pytest.param(f"<think>{LIST.replace('mug', 'jug')}</think>{LIST}", id="after reasoning"),
    ],
)
def test_answers_as_models_write_them(answer: str) -> None:
    found = [prompt.strip("\"'*") for prompt in texts(answer)]
    assert found == BOTH


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ('{"prompt": "a [v] mug called "Bob", at sea", "variation": "style"}', 'a [v] mug called "Bob", at sea'),
        ('["a [v] mug that says "hi", "bye" and "no" at sea"]', 'a [v] mug that says "hi", "bye" and "no" at sea'),
        ("['the dogs' [v] mug's shadow, at sea']", "the dogs' [v] mug's shadow, at sea"),
        ('{"prompt": "a [v] mug\nat\tsea"}', "a [v] mug\nat\tsea"),
        ('["a \\[v\\] mug in caf\\u00e9\\_1",]', "a [v] mug in café_1"),
        ('["a [v] mug \\ud83d\\ude00",]', "a [v] mug \N{GRINNING FACE}"),
        ('["a [v] mug \\ud83d"]', "a [v] mug "),
        ('{"prompt": "a [v] mug at http://sea.org // 5", "n": 1,}', "a [v] mug at http://sea.org // 5"),
        ('{"prompts": ["a [v] mug with <think> written on it"]}', "a [v] mug with <think> written on it"),
    ],
)
def test_what_is_inside_a_string_stays(answer: str, prompt: str) -> None:
    assert texts(answer) == [prompt]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot write about [v] mug.",
        "Use {word} and [v] mug.",
        '{"prompts": []}',
        '{"error": "no"}',
        "[" * 900 + "]" * 900,
        '{"a":' * 900 + "1" + "}" * 900,
        '{"prompt": "a [v] mug',
        "<think>" + ANSWER,
        f"<think>{ANSWER}</think>I am sorry.",
        '{"reasoning": "first a [v] mug at sea"}',
        "Okay, the user wants a [v] mug.\nRules are:\n- [v] mug once only\n- short\nSo I write\none of them now\n",
        "- a [v] mug at sea\n- and 40 words at most",
    ],
)
def test_answers_without_a_prompt(answer: str) -> None:
    assert texts(answer) == []


@pytest.mark.parametrize("named", ["weather", None, 3, ["style"]])
def test_an_unknown_variation_becomes_the_requested_one(named: object) -> None:
    answer = json.dumps({"prompts": [{"prompt": SEA, "variation": named}]})
    assert read_answer(answer, "style") == [RichPrompt(prompt=SEA, variation="style")]


@pytest.mark.parametrize("key", ["variation", "Variation"])
def test_a_variation_in_other_case_is_known(key: str) -> None:
    answer = json.dumps({"prompts": [{"prompt": SEA, key: " Background"}]})
    assert read_answer(answer, "style") == [RichPrompt(prompt=SEA, variation="background")]


@pytest.mark.parametrize("piece", ["[", "{", "[[1],", '{"a":', '["a",', "{'", "[//,", '["a" '])
def test_a_model_that_repeats_itself_without_end_is_read_in_time(piece: str) -> None:
    start = time.monotonic()
    read_answer(piece * 3000, "style")
    assert time.monotonic() - start < 10
