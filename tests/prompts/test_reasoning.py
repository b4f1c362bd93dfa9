"""Reasoning is left out of an answer, however a model marks it."""

from __future__ import annotations

import pytest

from prompts.reasoning import without_reasoning

FINAL = '{"prompts": ["FINAL"]}'


@pytest.mark.parametrize(
    "answer",
    [
        "<think>DRAFT</think>\n" + FINAL,
        "Sure. <THINK>DRAFT</THINK>" + FINAL,
        "<thinking mode='deep' time=\"3\">DRAFT</thinking>" + FINAL,
        "< think >DRAFT< / think >" + FINAL,
        "<reasoning\n>DRAFT</reasoning>" + FINAL,
        "<thought>DRAFT</thought>" + FINAL,
        "<reflection>DRAFT</reflection>" + FINAL,
        "<scratchpad>DRAFT</scratchpad>" + FINAL,
        "<inner_monologue>DRAFT</inner_monologue>" + FINAL,
        "<chain-of-thought>DRAFT</chain-of-thought>" + FINAL,
        "<seed:think>DRAFT</seed:think>" + FINAL,
        "<longcat_think>DRAFT</longcat_think>" + FINAL,
        "&lt;think&gt;DRAFT&lt;/think&gt;" + FINAL,
        "<think>DRAFT</thinking>" + FINAL,
        "DRAFT</think>" + FINAL,
        "<think>a</think>b<think>DRAFT</think>" + FINAL,
        "<think>a<think>b</think>DRAFT</think>" + FINAL,
        "<think>I may write <think> here: DRAFT</think>" + FINAL,
        "<thinking>a<reflection>b</reflection>DRAFT</thinking>" + FINAL,
        "DRAFT<answer>" + FINAL + "</answer>",
        "[THINK]DRAFT[/THINK]" + FINAL,
        "◁think▷DRAFT◁/think▷" + FINAL,
        "<|begin_of_thought|>DRAFT<|end_of_thought|><|begin_of_solution|>" + FINAL + "<|end_of_solution|>",
        "<|START_THINKING|>DRAFT<|END_THINKING|><|START_RESPONSE|>" + FINAL + "<|END_RESPONSE|>",
        "<|channel|>analysis<|message|>DRAFT<|end|><|start|>assistant<|channel|>final<|message|>" + FINAL,
        "<|channel|>analysis<|message|>a<|end|><|channel|>commentary to=x <|constrain|>json<|message|>DRAFT<|call|>"
        "<|start|>assistant<|channel|>final <|constrain|>json<|message|>" + FINAL + "<|return|>",
        "analysisWe need to write. DRAFTassistantfinal" + FINAL,
        "<|channel>thought\nDRAFT<channel|>" + FINAL,
        "<unused94>thought\nDRAFT<unused95>" + FINAL,
        "Here is my thought process: DRAFT Here is my response: " + FINAL,
        '<details type="reasoning" done="true"><summary>Thought</summary>DRAFT</details>' + FINAL,
        "```thinking\nDRAFT\n```\n```json\n" + FINAL + "\n```",
    ],
)
def test_reasoning_is_dropped_and_the_answer_stays(answer: str) -> None:
    rest = without_reasoning(answer)
    assert "DRAFT" not in rest
    assert FINAL in rest


@pytest.mark.parametrize(
    "answer",
    [
        "<think>DRAFT",
        "Sure. <think>DRAFT",
        "<thinking>a<reflection>b</reflection>DRAFT",
        "<think>a</think><think>DRAFT",
        "<|channel|>analysis<|message|>DRAFT",
        "analysisWe need to write. DRAFT",
        "[THINK]DRAFT",
        "◁think▷DRAFT",
        "<|begin_of_thought|>DRAFT",
        "```thinking\nDRAFT",
    ],
)
def test_an_answer_that_is_cut_off_within_its_reasoning_holds_no_answer(answer: str) -> None:
    assert "DRAFT" not in without_reasoning(answer)


@pytest.mark.parametrize(
    "answer",
    ["<think/>" + FINAL, "a thinker in thought, a reason to reflect", "an analysis < thinking", "a <b>thick</b> draft"],
)
def test_other_text_stays(answer: str) -> None:
    assert without_reasoning(answer) == answer
