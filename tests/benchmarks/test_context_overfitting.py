from pathlib import Path

import pytest
import torch

from model.backbone import load_backbone
from model.concepts.concept import Concept, ConceptToken
from model.concepts.folder import write_concept
from model.micro_sd.weights import WEIGHTS_FOLDER
from tests.benchmarks.context_overfitting import MEASURES, context_of, context_words, encode, measure, prompts_of, table


def test_context_tokens_are_the_words_for_places() -> None:
    backbone = load_backbone(str(WEIGHTS_FOLDER))
    prompts = [prompt.format("mug") for prompt in prompts_of(100)]
    assert len(set(prompts)) == 100
    encoded = encode(backbone, prompts)
    words = [set(backbone.tokenizers[0].convert_ids_to_tokens(row)) for row in encoded.ids.tolist()]
    marked = context_of(backbone, encoded.ids)
    assert bool(marked.any(1).all())
    for row, own in enumerate(words):
        found = set(backbone.tokenizers[0].convert_ids_to_tokens(encoded.ids[row][marked[row]].tolist()))
        assert found == own & context_words()


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_concept_that_is_the_class_word_is_measured_as_that_word_repeated(vectors: int, tmp_path: Path) -> None:
    backbone = load_backbone(str(WEIGHTS_FOLDER))
    row = backbone.tokenizers[0].convert_tokens_to_ids("mug")
    embeddings = backbone.text_encoders[0].get_input_embeddings().weight.detach()[row].repeat(vectors, 1)
    token = ConceptToken(placeholder="[v]", word="mug", subject="a mug", embeddings=(embeddings,))
    write_concept(tmp_path / "mug", Concept(method="textual_inversion", backbone="micro", tokens=(token,)))
    found = measure(backbone, tmp_path / "mug", ["a photo of a {} on the beach"], torch.randn(1, 4, 16, 16))
    repeated = encode(backbone, [f"a photo of a {'mug ' * vectors}mug on the beach"]).states[0]
    plain = encode(backbone, ["a photo of a mug on the beach"]).states[0]
    first, beach = 5, 8 + vectors  # after the start token
    assert found["sim_1"] == pytest.approx(
        float(torch.cosine_similarity(repeated[first], repeated[beach], 0)), abs=1e-5
    )
    assert found["sim_2"] == pytest.approx(float(torch.cosine_similarity(repeated[beach], plain[8], 0)), abs=1e-5)
    assert found["SKL"] > 0
    assert set(found) == set(MEASURES)


def test_the_table_has_a_line_for_each_arm_with_intervals_over_subjects() -> None:
    plain, other = ({str(n): dict.fromkeys(MEASURES, (n + more) / 10) for n in range(5)} for more in (0, 1))
    lines = table({"plain": plain, "mlm": other}).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| plain | 0.20 (")
    assert lines[3].endswith("| +0.10 (+0.10 to +0.10) |")
