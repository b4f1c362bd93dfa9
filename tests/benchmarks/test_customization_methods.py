"""The arms, tables and figures of `customization_methods` from handmade results, and the benchmark itself in small."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from model.dci.settings import DCISettings
from stages.config import Config
from stages.customize.config import CustomizeConfig
from stages.training.config import TrainerConfig
from tests.benchmarks.customization_methods import Budget, find_subjects, main
from tests.benchmarks.support.concept_training import Optimizer, checkpoint_steps, rich_prompts
from tests.benchmarks.support.customization_arms import (
    EXPERIMENTS,
    METHODS,
    with_dci,
    with_mlm,
    with_prompts,
    with_resized_pictures,
    with_tailored_prompts,
)
from tests.benchmarks.support.customization_figures import draw_pictures, plot_curves
from tests.benchmarks.support.customization_table import CLASS_WORD, markdown, read_results

SUBJECTS = ("a", "b")
ARMS = {arm.name: arm for arm in chain.from_iterable(EXPERIMENTS.values())}
BUDGET = Budget(subjects=2, prompts=2, steps_scale=0.5, painting_steps=8, seed=3)


def write_scores(folder: Path, name: str, similarity: Sequence[float], fidelity: float, subjects: int = 2) -> None:
    """The files of an arm: two steps, two pictures of each subject; a similarity of 0 at the first step."""
    for subject, value in zip(SUBJECTS[:subjects], similarity, strict=False):
        own = {
            step: [
                {"prompt": "a mug", "similarity": own, "fidelity": fidelity, "clip_t": 0.5} for own in (found, found)
            ]
            for step, found in (("1", 0.0), ("2", value))
        }
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{subject}.json").write_text(json.dumps(own))
        colours = np.random.default_rng(0).integers(255, size=(8, 16, 3), dtype=np.uint8)
        Image.fromarray(colours).save(folder / name / f"{subject}.png")


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    folder = tmp_path / "scores"
    write_scores(folder, CLASS_WORD, [0.1, 0.1], 1.0)
    write_scores(folder, with_mlm("textual_inversion", 0.0).name, [0.4, 0.6], 0.5)
    write_scores(folder, with_mlm("textual_inversion").name, [0.5, 0.9], 0.75)
    write_scores(folder, with_mlm("xti", 0.0).name, [0.4], 0.5, subjects=1)
    write_scores(folder, with_prompts("ico", 3).name, [0.4, 0.6], 0.5)
    write_scores(folder, with_dci(with_prompts("ico", 3), 1.0).name, [0.3, 0.5], 0.6)
    return folder


def cells(table: str, label: str) -> list[str]:
    """The cells of the first line with a label."""
    line = next(line for line in table.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def section(text: str, title: str) -> str:
    """The table below a title."""
    return text[text.index(f"{title}\n") :].split("\n\n")[1]


def test_table_2_has_both_arms_and_their_paired_difference(scores: Path) -> None:
    table = section(markdown(read_results(scores, SUBJECTS)), "mlm: lambda 0.01")
    assert cells(table, "TI")[1] == "0.50 (0.40 to 0.60)"
    assert cells(table, "TI + MLM")[1] == "0.70 (0.50 to 0.90)"
    assert cells(table, "difference")[1:] == [
        "+0.20 (+0.10 to +0.30)",
        "+0.25 (+0.25 to +0.25)",
        "+0.00 (+0.00 to +0.00)",
    ]


def test_an_arm_without_all_subjects_has_no_results(scores: Path) -> None:
    results = read_results(scores, SUBJECTS)
    assert with_mlm("xti", 0.0).name not in results
    assert "XTI" not in markdown(results)
    assert with_mlm("xti", 0.0).name in read_results(scores, SUBJECTS[:1])


def test_sweeps_compare_with_no_mlm_loss_and_dci_with_its_training(scores: Path) -> None:
    text = markdown(read_results(scores, SUBJECTS))
    assert cells(section(text, "lambda"), "TI")[4:] == ["", "", ""]
    assert cells(section(text, "lambda"), "TI, lambda 0.01, 15% masked")[5].startswith("+0.25")
    assert cells(section(text, "mask_rate"), "TI, lambda 0.01, 15% masked")[4].startswith("+0.20")
    assert cells(section(text, "dci"), "ICO, S = 3 + DCI, lambda 1")[4:6] == [
        "-0.10 (-0.10 to -0.10)",
        "+0.10 (+0.10 to +0.10)",
    ]


def test_the_curves_have_all_steps(scores: Path) -> None:
    lines = section(markdown(read_results(scores, SUBJECTS)), "ico").splitlines()[2:]
    assert [line.split("|")[2].strip() for line in lines] == ["1", "2"]
    assert [line.split("|")[3].split()[0] for line in lines] == ["0.00", "0.50"]


def test_ico_is_compared_with_templates_at_the_same_step_and_with_their_curve(scores: Path) -> None:
    write_scores(scores, with_prompts("fixed", 3).name, [0.2, 0.4], 0.25)
    table = section(markdown(read_results(scores, SUBJECTS)), "same prompt fidelity")
    assert [line.split("|")[2].strip() for line in table.splitlines()[2:]] == ["1", "2"]
    last = [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]]
    assert last[2].startswith("+0.20 (+0.20")
    assert last[3].startswith("+0.25")
    # the curve goes from (1, 0.1) to (0.25, 0) at step 1 and (0.25, 0.3) at step 2
    assert last[5].startswith("+0.")


def test_dci_is_compared_with_the_curves_of_both_trainings(scores: Path) -> None:
    title = "without DCI, at the same prompt fidelity"
    assert title not in markdown(read_results(scores, SUBJECTS))  # a training is missing
    write_scores(scores, with_prompts("fixed", 3).name, [0.2, 0.4], 0.25)
    row = cells(section(markdown(read_results(scores, SUBJECTS)), title), "ICO, S = 3 + DCI, lambda 1")
    assert len(row) == 3


def test_the_tailored_prompts_are_compared_with_no_mlm_loss(scores: Path) -> None:
    write_scores(scores, with_tailored_prompts("textual_inversion").name, [0.5, 0.9], 0.75)
    row = cells(
        section(markdown(read_results(scores, SUBJECTS)), "tailored"), "TI, lambda 0.01, 15% masked, tailored prompts"
    )
    assert row[5].startswith("+0.25")


def test_resized_pictures_are_compared_with_plain_ones(scores: Path) -> None:
    write_scores(scores, with_mlm("custom_diffusion", 0.0).name, [0.4, 0.6], 0.5)
    write_scores(scores, with_resized_pictures().name, [0.3, 0.5], 0.75)
    row = cells(section(markdown(read_results(scores, SUBJECTS)), "resize"), "Custom Diffusion, resized pictures")
    assert row[4].startswith("-0.10")


def test_no_results_make_no_tables(tmp_path: Path) -> None:
    assert markdown(read_results(tmp_path, SUBJECTS)) == ""


@pytest.mark.parametrize("names", [[], [CLASS_WORD], list(ARMS), [CLASS_WORD, *ARMS]], ids=len)
def test_the_figures(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_scores(tmp_path / "scores", name, [0.4, 0.6], 0.5)
    results = read_results(tmp_path / "scores", SUBJECTS)
    plot_curves(results, tmp_path / "curves.png")
    draw_pictures(tmp_path / "scores", results, tmp_path / "pictures.png")
    assert (tmp_path / "curves.png").exists()
    assert (tmp_path / "pictures.png").exists() == (CLASS_WORD in names)


def test_the_sheet_has_a_row_for_each_arm(scores: Path, tmp_path: Path) -> None:
    draw_pictures(scores, read_results(scores, SUBJECTS), tmp_path / "pictures.png")
    with Image.open(tmp_path / "pictures.png") as sheet:
        assert sheet.height == 8 * 5  # the class word, TI without and with MLM, ICO without and with DCI


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_configuration(name: str) -> None:
    arm = ARMS[name]
    config = BUDGET.config(arm)
    own = config.customize
    assert own.pictures == "album"
    assert own.trainer.schedule == "constant"
    assert own.mlm == (own.mlm_weight > 0 and "lambda" in arm.training)
    assert config.run.seed == 3
    if arm.strength is not None:
        assert ARMS[arm.training].values == arm.values
        DCISettings(concept="[v] mug", injection_strength=arm.strength)


def test_arms_of_one_name_are_equal() -> None:
    assert all(arm == ARMS[arm.name] for arms in EXPERIMENTS.values() for arm in arms)


@pytest.mark.parametrize("method", METHODS)
def test_a_pair_of_table_2_differs_in_the_mlm_loss_alone(method: Any) -> None:
    without, with_it = BUDGET.config(with_mlm(method, 0.0)).customize, BUDGET.config(with_mlm(method)).customize
    differing = {key for key, value in vars(without).items() if getattr(with_it, key) != value}
    assert differing == {"mlm", "mlm_weight"}


def test_the_budget_scales_the_steps() -> None:
    arm = with_mlm("dreambooth")
    whole = Budget(subjects=2, prompts=2, steps_scale=1.0, painting_steps=8, seed=3).config(arm).customize
    half = BUDGET.config(arm).customize
    assert (half.steps, half.sample_every) == (whole.steps // 2, (whole.sample_every or 0) // 2)


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [(60, 30, [30, 60]), (60, 25, [25, 50, 60]), (60, None, [60]), (3, 100, [3]), (1, 1, [1])],
)
def test_the_concept_is_kept_on_the_way_and_at_the_end(steps: int, every: int | None, expected: list[int]) -> None:
    assert checkpoint_steps(CustomizeConfig(steps=steps, sample_every=every)) == expected


def test_a_factor_of_the_rate_moves_a_weight_further() -> None:
    module = nn.Module()
    module.slow, module.fast = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    module.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    trainer = TrainerConfig(learning_rate=1e-3, warmup_steps=1, schedule="constant", weight_decay=0.0)
    optimizer = Optimizer(module, {"fast": 10.0}, trainer, steps=1)
    optimizer.step((module.slow + module.fast).sum() * 0.1, 0)
    assert module.slow.item() == pytest.approx(-1e-3, rel=1e-3)
    assert module.fast.item() == pytest.approx(-1e-2, rel=1e-3)


def test_rich_prompts_leave_the_evaluation_s_out() -> None:
    config = Config()
    every = rich_prompts("mug", config, [])
    seen = "a photo of a [v] mug in the snow"
    assert seen in every
    left = rich_prompts("mug", config, [seen.replace("[v] ", "")])
    assert set(every) - set(left) == {seen}


def test_tailored_prompts_are_others_than_the_rich_ones() -> None:
    config = Config()
    tailored = rich_prompts("duck", config, [], tailored=True)
    assert len(tailored) == config.prompts.tailored_prompts
    assert all("water" in prompt or "ocean" in prompt for prompt in tailored)
    assert not set(tailored) & set(rich_prompts("duck", config, []))


@pytest.fixture
def microworld(tmp_path: Path) -> Path:
    """Subjects of two trained categories, the first one twice, and of a held-out one."""
    (tmp_path / "picture.png").write_bytes(b"a picture")
    listing = [
        {"subject": name, "word": word, "category": category, "pictures": ["picture.png"] * 2, "album": ["picture.png"]}
        for name, word, category in (
            ("bear-1", "toy", "bear"),
            ("mug-1", "mug", "mug"),
            ("ball-1", "ball", "ball"),
            ("mug-2", "mug", "mug"),
        )
    ]
    (tmp_path / "subjects.json").write_text(json.dumps(listing))
    return tmp_path


def test_the_subjects_are_the_first_of_each_trained_category(microworld: Path) -> None:
    found = find_subjects(microworld, 2, Config())
    assert [subject.name for subject in found] == ["mug-1", "ball-1"]
    assert (found[0].album, found[0].views) == ((b"a picture",), (b"a picture",) * 2)


def test_more_subjects_than_categories_are_refused(microworld: Path) -> None:
    with pytest.raises(SystemExit, match="--subjects 3: there are 2 categories"):
        find_subjects(microworld, 3, Config())


@pytest.mark.nightly
def test_the_benchmark_trains_paints_and_does_not_repeat_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results"
    arguments = ["--output", str(output), "--subjects", "1", "--prompts", "2", "--steps-scale", "0.03"]
    arguments += ["--painting-steps", "8", "--experiments", "mlm", "dci"]
    main(arguments)
    shown = capsys.readouterr().out
    assert all(f"| {label} |" in shown for label in METHODS.values())
    assert "| ICO, S = 3 + DCI, lambda 1 |" in shown
    assert (output / "curves.png").exists()
    (file,) = (output / "scores" / with_mlm("textual_inversion").name).glob("*.json")
    rows = json.loads(file.read_text())
    assert [len(own) for own in rows.values()] == [2] * len(rows)
    written = file.stat().st_mtime_ns
    main(arguments)
    assert file.stat().st_mtime_ns == written
