"""The filter: each reason, scores of real models against their definitions, and the stage on real Ray Data."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from model.micro_sd.weights import WEIGHTS_FOLDER
from stages.contract import StageError
from stages.data.datasets import read_dataset, row_counts, write_part
from stages.data.schemas import REJECTED, SAMPLES
from stages.filter import stage as filter_stage
from stages.filter.candidate import Candidate
from stages.filter.config import FilterConfig, ScoringConfig
from stages.filter.rules import REASONS, SETTING_OF, active_rules, rejection
from stages.filter.scoring import ScoreModels
from stages.filter.stage import check_settings, nothing_left
from stages.filter.verdicts import group_files
from tests.support.contexts import make_context
from tests.support.picture_files import encode, png, scene

CYRILLIC = "\u0444\u043e\u0442\u043e a \u0432\u0430\u0437\u044b"


def sample(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "sample_id": f"{number:04d}",
        "url": f"http://host/{number}.jpg",
        "caption": "a photo of a mug",
        "picture": encode(scene(number)),
        "width": 64,
        "height": 64,
        "original_width": 80,
        "original_height": 80,
        "similarity": 0.3,
        "unsafe": 0.1,
        "watermark": 0.2,
        "aesthetic": 5.5,
        "language": "en",
    }
    return row | changes


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({}, None, None),
        ({"original_width": 47}, "side", "47 < 48"),
        ({"original_width": 60, "original_height": 60}, "pixels", "3600 < 4000"),
        ({"original_width": 161, "width": 161}, "aspect_ratio", "2.013 > 2"),
        ({"original_width": 160}, None, None),
        ({"caption": "mug photo"}, "caption_words", "2 < 3"),
        ({"caption": "\u5c71\u6c34 "}, "caption_words", "2 < 3"),
        ({"caption": "very " * 300}, "caption_characters", "1500 > 1000"),
        ({"caption": CYRILLIC}, "caption_script", "1 of 9 letters are LATIN"),
        ({"caption": "1 2 3"}, "caption_script", "0 of 0 letters are LATIN"),
        ({"caption": "\u00e9t\u00e9 \u00e0 la \u5c71"}, None, None),
        ({"language": "fr"}, "language", "fr is not en or de"),
        ({"language": None}, "language", "None is not en or de"),
        ({"language": "de_AT"}, None, None),
        ({"unsafe": 0.51}, "unsafe", "0.51 > 0.5"),
        ({"watermark": 0.9}, "watermark", "0.9 > 0.8"),
        ({"similarity": 0.25}, "similarity", "0.25 < 0.26"),
        ({"aesthetic": 4.999}, "aesthetic", "4.999 < 5"),
        ({"aesthetic": 5.0}, None, None),
        ({"aesthetic": None}, "aesthetic_missing", "the row has no such score"),
        ({"aesthetic": float("nan")}, "aesthetic_missing", "the row has no such score"),
        ({"similarity": None}, None, None),  # a model computes it
        ({"picture": b"text"}, "undecodable", None),
        ({"picture": encode(Image.new("RGB", (64, 64), "#808080"))}, "single_colour", "contrast 0 < 4"),
        ({"caption": "mug", "original_height": 3, "aesthetic": None, "picture": b""}, "side", "3 < 48"),
    ],
)
def test_the_first_rule_that_rejects_a_sample_is_the_reason(
    changes: dict[str, Any], reason: str | None, detail: str | None
) -> None:
    config = FilterConfig(min_pixels=4000, caption_script="LATIN", languages=["en", "DE"])
    found = rejection(Candidate(sample(1, **changes)), active_rules(config))
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert (found[0], found[1] if detail else None) == (reason, detail)


def test_a_picture_is_decoded_only_when_the_metadata_lets_it_pass() -> None:
    candidate = Candidate(sample(1, aesthetic=1.0, picture=b"text"))
    assert rejection(candidate, active_rules(FilterConfig())) == ("aesthetic", "1 < 5")
    assert "picture" not in vars(candidate)


def test_every_reason_has_its_description_and_its_setting() -> None:
    always = {"no_picture", "no_caption", "caption_encoding", "unreadable", "undecodable", "duplicate_id"}
    assert set(SETTING_OF) == set(REASONS) - always
    assert all(hasattr(FilterConfig(), setting) for setting in SETTING_OF.values())


@given(
    score=st.none() | st.floats(0, 10),
    minimum=st.none() | st.floats(0, 10),
    side=st.integers(1, 100),
    smallest=st.none() | st.integers(1, 100),
)
def test_thresholds_against_a_plain_statement(
    score: float | None, minimum: float | None, side: int, smallest: int | None
) -> None:
    config = FilterConfig(min_aesthetic=minimum, min_side=smallest, max_aspect_ratio=None)
    row = sample(1, aesthetic=score, original_width=side)
    passes_side = smallest is None or min(side, 80) >= smallest
    passes_score = minimum is None or (score is not None and score >= minimum)
    assert (rejection(Candidate(row), active_rules(config)) is None) == (passes_side and passes_score)


def test_a_threshold_on_a_missing_score_names_column_and_setting(tmp_path: Path) -> None:
    rows = [sample(number, aesthetic=None, similarity=None, language=None) for number in (1, 2)]
    write_part(tmp_path, 0, pa.Table.from_pylist(rows, schema=SAMPLES), SAMPLES)
    with pytest.raises(StageError, match=r"'AESTHETIC_SCORE'.*--set filter.min_aesthetic=null"):
        check_settings(tmp_path, FilterConfig())
    check_settings(tmp_path, FilterConfig(min_aesthetic=None))
    with pytest.raises(StageError, match=r"'LANGUAGE'.*--set filter.languages=null"):
        check_settings(tmp_path, FilterConfig(min_aesthetic=None, languages=["en"]))
    with pytest.raises(
        StageError, match=r"filter.min_aesthetic .* name models for them in filter.scoring.aesthetic_head,"
    ):
        check_settings(tmp_path, FilterConfig())
    no_clip = ScoringConfig(similarity_clip=None)
    with pytest.raises(StageError, match=r"--set filter.min_aesthetic=null --set filter.languages=null") as caught:
        check_settings(tmp_path, FilterConfig(languages=["en"], scoring=no_clip))
    assert all(f"filter.{name} needs" in str(caught.value) for name in ("min_similarity", "min_aesthetic", "languages"))
    without_clip = FilterConfig(min_aesthetic=None, scoring=no_clip)
    with pytest.raises(StageError, match=r"'similarity'.*--set filter.min_similarity=null"):
        check_settings(tmp_path, without_clip)


def test_an_empty_result_names_the_rules_and_their_counts() -> None:
    text = nothing_left(9, {"side": 2, "aesthetic": 7})
    assert "all 9 samples: aesthetic 7, side 2" in text
    assert "--set filter.min_aesthetic=" in text


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_files_are_grouped_in_order(sizes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("parts")
    table = pa.table({"x": pa.array(range(10), pa.int64())})
    for number, size in enumerate(sizes):
        write_part(folder, number, table.slice(0, size), table.schema)
    groups = group_files(sorted(folder.iterdir()), row_counts(sorted(folder.iterdir())), 8)
    files = [Path(file) for group in groups for file in group.files]
    assert files == sorted(folder.iterdir())
    assert [group.first for group in groups] == [files.index(Path(group.files[0])) for group in groups]
    assert [group.rows for group in groups] == [
        sum(sizes[int(Path(file).stem[-5:])] for file in group.files) for group in groups
    ]
    assert all(group.rows >= 8 for group in groups[:-1])


def save_head(path: Path, widths: list[int]) -> list[torch.Tensor]:
    """LAION's V2 form: dropout layers, which have no weights, take the numbers in between."""
    torch.manual_seed(0)
    places = [0, 2, 4, 6, 7][: len(widths) - 1]
    state: dict[str, torch.Tensor] = {}
    for place, (wide, narrow) in zip(places, itertools.pairwise(widths), strict=True):
        state |= {f"layers.{place}.weight": torch.randn(narrow, wide), f"layers.{place}.bias": torch.randn(narrow)}
    torch.save(state, path)
    return list(state.values())


def test_scores_of_real_models_against_their_definitions(tmp_path: Path) -> None:
    tensors = save_head(tmp_path / "head.pth", [128, 16, 8, 1])
    scoring = ScoringConfig(aesthetic_clip="micro", aesthetic_head=str(tmp_path / "head.pth"))
    models = ScoreModels(scoring, {"similarity", "aesthetic"})
    rows = [sample(1), sample(2, caption="a red ball on the beach", picture=encode(scene(2, 80)))]
    found = models(rows)
    clip = CLIPModel.from_pretrained(WEIGHTS_FOLDER / "clip")
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS_FOLDER / "tokenizer")
    for number, row in enumerate(rows):
        pixels = Image.open(io.BytesIO(row["picture"]))
        array = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None] / 255
        if pixels.size != (64, 64):
            array = F.interpolate(array, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
        tokens = tokenizer([row["caption"]], padding="max_length", max_length=16, return_tensors="pt")
        with torch.no_grad():
            output = clip(pixel_values=array * 2 - 1, input_ids=tokens["input_ids"])
        picture, text = (F.normalize(one, dim=-1)[0] for one in (output.image_embeds, output.text_embeds))
        assert found["similarity"][number] == pytest.approx(float(picture @ text), abs=1e-5)
        value = picture
        for weight, bias in zip(tensors[::2], tensors[1::2], strict=True):
            value = weight @ value + bias
        assert found["aesthetic"][number] == pytest.approx(float(value), rel=1e-4)


def test_the_safety_score_is_that_of_the_safety_checker(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=vision | {"image_size": 64, "patch_size": 16}, projection_dim=12)
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        checker.concept_embeds.normal_()
        checker.concept_embeds_weights.fill_(0.3)
    checker.save_pretrained(tmp_path / "safety_checker")
    rows = [sample(number, picture=png(scene(number))) for number in range(4)]
    found = ScoreModels(ScoringConfig(safety_checker=str(tmp_path)), {"unsafe"})(rows)
    prepare = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    for row, score in zip(rows, found["unsafe"], strict=True):
        views = prepare([Image.open(io.BytesIO(row["picture"]))], return_tensors="pt")["pixel_values"]
        picture = checker.visual_projection(checker.vision_model(views)[1])
        nearest = F.cosine_similarity(picture, checker.concept_embeds).max() - 0.3
        assert score == pytest.approx(float(torch.sigmoid(100 * nearest)), abs=1e-3)
    with pytest.raises(StageError, match=r"filter.scoring.safety_checker: the safety checker of /no/such cannot"):
        ScoreModels(ScoringConfig(safety_checker="/no/such"), {"unsafe"})


def test_unsuitable_models_are_one_sentence(tmp_path: Path) -> None:
    save_head(tmp_path / "wide.pth", [768, 1])
    scoring = ScoringConfig(aesthetic_clip="micro", aesthetic_head=str(tmp_path / "wide.pth"))
    with pytest.raises(StageError, match=r"reads embeddings of 768 numbers, the CLIP .* has 128"):
        ScoreModels(scoring, {"aesthetic"})
    with pytest.raises(StageError, match="CLIP '/no/such/folder' cannot be loaded"):
        ScoreModels(ScoringConfig(similarity_clip="/no/such/folder"), {"similarity"})


@pytest.mark.slow
def test_the_stage_keeps_the_order_and_does_not_depend_on_the_files(tmp_path: Path, ray_cluster: str) -> None:
    rows = [sample(number) for number in range(12)]
    rows[2] |= {"aesthetic": 4.0}
    rows[3] |= {"picture": rows[3]["picture"][:300]}
    rows[5] |= {"picture": rows[1]["picture"]}
    rows[7] |= {"picture": rows[2]["picture"]}  # the original of this copy has been rejected, so the copy stays
    outputs = []
    for name, parts in {"one": [rows], "three": [rows[:5], rows[5:6], rows[6:]]}.items():
        folder = tmp_path / name / "ingest"
        for number, part in enumerate(parts):
            write_part(folder / "samples", number, pa.Table.from_pylist(part, schema=SAMPLES), SAMPLES)
        context = make_context(tmp_path / name, inputs={"ingest": folder})
        result = filter_stage.run(context)
        assert result.rows == {"samples": 9, "rejected": 3}
        assert result.metrics == {"rejected_aesthetic": 1, "rejected_duplicate": 1, "rejected_undecodable": 1}
        outputs.append(
            [read_dataset(context.output / "samples", SAMPLES), read_dataset(context.output / "rejected", REJECTED)]
        )
    assert outputs[0] == outputs[1]
    samples, rejected = outputs[0]
    assert samples.to_pylist() == [row for number, row in enumerate(map(round_scores, rows)) if number not in (2, 3, 5)]
    assert [(row["sample_id"], row["reason"]) for row in rejected.to_pylist()] == [
        ("0002", "aesthetic"), ("0003", "undecodable"), ("0005", "duplicate"),
    ]  # fmt: skip
    empty = make_context(tmp_path / "one", inputs={"ingest": tmp_path / "one" / "ingest"}, filter={"min_aesthetic": 9})
    with pytest.raises(StageError, match="all 12 samples: aesthetic 12; loosen"):
        filter_stage.run(empty)


def round_scores(row: dict[str, Any]) -> dict[str, Any]:
    """Scores are stored in single precision."""
    return {key: float(np.float32(value)) if isinstance(value, float) else value for key, value in row.items()}


@pytest.mark.slow
def test_missing_scores_are_computed_and_kept_with_the_samples(tmp_path: Path, ray_cluster: str) -> None:
    rows = [sample(number) for number in range(6)]
    for number in (1, 2, 4):
        rows[number] |= {"similarity": None}
    rows[2] |= {"aesthetic": 1.0}  # rejected by a cheaper rule: nothing is computed
    rows[5] |= {"similarity": float("nan"), "aesthetic": 6.0}
    write_part(tmp_path / "ingest" / "samples", 0, pa.Table.from_pylist(rows, schema=SAMPLES), SAMPLES)
    similarity = ScoreModels(ScoringConfig(), {"similarity"})([rows[number] for number in (1, 4, 5)])["similarity"]
    limit = sorted(similarity)[0] + 1e-3  # rejects one of the three
    events: list[Mapping[str, Any]] = []
    changes = {"min_similarity": min(limit, 0.3)}
    context = make_context(tmp_path, inputs={"ingest": tmp_path / "ingest"}, events=events, filter=changes)
    result = filter_stage.run(context)
    assert result.metrics == {"rejected_aesthetic": 1, "rejected_similarity": 1, "scored": 3}
    kept = {row["sample_id"]: row for row in read_dataset(context.output / "samples", SAMPLES).to_pylist()}
    for number, value in zip((1, 4, 5), similarity, strict=True):
        if value >= limit:
            assert kept[f"{number:04d}"]["similarity"] == pytest.approx(value, abs=1e-5)
        else:
            assert f"{number:04d}" not in kept
    assert kept["0000"]["similarity"] == pytest.approx(0.3)
    warnings = [str(event["text"]) for event in events if event["event"] == "warning"]
    assert warnings == [
        "3 samples lack a score in the metadata, which is computed: similarity by micro; the micro CLIP knows the "
        "micro world only."
    ]
    assert {event["key"]: event["path"] for event in events if event["event"] == "picture"} == {
        "waterfall": str(context.output / "waterfall.png")
    }


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_stops_the_stage_with_one_sentence(tmp_path: Path, ray_cluster: str) -> None:
    rows = pa.Table.from_pylist([sample(1, similarity=None)], schema=SAMPLES)
    write_part(tmp_path / "ingest" / "samples", 0, rows, SAMPLES)
    changes = {"scoring": {"similarity_clip": "/no/such/folder"}}
    context = make_context(tmp_path, inputs={"ingest": tmp_path / "ingest"}, filter=changes)
    with pytest.raises(StageError, match="CLIP '/no/such/folder' cannot be loaded"):
        filter_stage.run(context)
