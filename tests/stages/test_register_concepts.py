"""Learned concepts in the model registry."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
import pytest
import torch

from model.backbone import load_backbone
from model.concepts.concept import Concept, ConceptToken
from model.concepts.folder import write_concept
from model.concepts.loading import load_concept
from model.concepts.model_parts import ModelParts
from stages.register.concepts import concept_model_names, concept_score, learned_concepts
from tests.support.concept_entries import concept_entry
from tests.support.registered_model import Registry

#: Folders of subjects, as users call them.
NAMES = [
    "mug", "my dog", "Mug", "ünïcode", "犬", "a/b", "a:b", "50%", 'q"uote', "it's", ".hidden", "-x", "a.b", "tab\tb",
    "a" * 300, "a" * 301, "[v]", "mug-2", "🐶", "joint",
]  # fmt: skip


def test_every_subject_has_a_registered_model_of_its_own() -> None:
    names = concept_model_names("realword-micro", [concept_entry(name, "mug") for name in NAMES])
    assert len(set(names)) == len(names) == 20
    for name in names:
        assert re.fullmatch(r"[\w-][\w.-]*", name)
        assert len(name) <= 200
    assert names[0] == "realword-micro-concept-mug"


def test_concepts_that_have_not_learned_are_not_offered(tmp_path: Path) -> None:
    """Of subjects that were learned together all must have."""
    entries = [
        concept_entry("mug", "mug"),
        concept_entry("dog", "dog", learned=False),
        concept_entry("cat", "cat", folder="concepts/joint"),
        concept_entry("hat", "hat", folder="concepts/joint", learned=False),
    ]
    (tmp_path / "concepts.json").write_text(json.dumps(entries))
    assert [entry["name"] for entry in learned_concepts(tmp_path)] == ["mug"]
    entries[3]["learned"] = True
    entries[2]["placeholder"], entries[3]["placeholder"] = "[v1]", "[v2]"
    entries[3]["scores"]["similarity"]["mean"] = 0.7
    (tmp_path / "concepts.json").write_text(json.dumps(entries))
    alone, joint = learned_concepts(tmp_path)
    assert (alone["name"], alone["placeholder"], concept_score(alone)) == ("mug", "[v]", 0.25)
    assert (joint["name"], joint["word"], joint["placeholder"]) == ("cat, hat", "cat, hat", "[v1], [v2]")
    assert concept_score(joint) == pytest.approx(0.6 * 0.5)


@pytest.mark.slow
def test_a_concept_is_registered_and_loaded_again(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    backbone = load_backbone(registry.inputs["base"] / "backbone")
    customize = registry.inputs["customize"]
    embedding = torch.ones(1, ModelParts.of(backbone).widths[0])
    token = ConceptToken(placeholder="[v]", word="mug", subject="mug", embeddings=(embedding,))
    write_concept(customize / "concepts" / "mug", Concept(method="textual_inversion", backbone="", tokens=(token,)))
    for similarity in (0.5, 0.4, 0.6):
        entries = [concept_entry("mug", "mug", similarity=similarity), concept_entry("dog", "dog", learned=False)]
        (customize / "concepts.json").write_text(json.dumps(entries))
        registered, result = registry.register(0.6)
    name = "realword-micro-concept-mug"
    assert [concept["uri"] for concept in registered["concepts"]] == [f"models:/{name}/3"]
    assert result.notes["concepts"] == f"{name} version 3"
    assert {model.name for model in registry.client.search_registered_models()} == {"realword-micro", name}
    aliases = [registry.client.get_model_version(name, str(number)).aliases for number in (1, 2, 3)]
    assert aliases == [[], [], ["champion"]]
    tags = registry.client.get_model_version(name, "3").tags
    assert tags["method"] == "xti"
    assert tags["lineage.customize"] == customize.name
    mlflow.set_tracking_uri(registry.uri)
    mlflow.set_registry_uri(registry.uri)
    folder = mlflow.artifacts.download_artifacts(f"models:/{name}@champion", dst_path=str(tmp_path / "downloaded"))
    assert load_concept(backbone, folder) == ["[v]"]
