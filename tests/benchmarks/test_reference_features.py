from __future__ import annotations

import pytest
import torch

from model.microworld.appearance import NO_COLOUR, PATTERN_NAMES, PLAIN, SECOND_COLOUR_NAMES
from tests.benchmarks.reference_features import main, patterned_references, reading_accuracy


def test_a_reader_reads_what_is_there_and_no_more() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, answers = torch.randn(600, 8, 4, generator=generator), torch.randint(4, (600,), generator=generator)
    marked = tokens.clone()
    marked[torch.arange(600), torch.randint(8, (600,), generator=generator), answers] += 6  # in any of the places

    def accuracy(source: torch.Tensor) -> float:
        return reading_accuracy((source[:480], answers[:480]), (source[480:], answers[480:]), classes=4, epochs=4)

    assert accuracy(marked) > 0.9
    assert accuracy(tokens) < 0.4


def test_references_show_a_pattern_of_another_colour() -> None:
    references = patterned_references("test", 60, seed=1)
    assert 20 < len(references.pictures) < 50
    assert references.pictures.shape[1:] == (3, 64, 64)
    assert PATTERN_NAMES.index(PLAIN) not in references.answers["pattern"].tolist()
    assert SECOND_COLOUR_NAMES.index(NO_COLOUR) not in references.answers["second colour"].tolist()


@pytest.mark.slow
def test_the_table_has_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--scenes", "80", "--epochs", "1"])
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[3:] == ["pixels", "encoders' features", "adapter's tokens", "the judge"]
