import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.micro_sd.data import crop_around, draw_indices
from model.microworld.appearance import PATTERN_NAMES, SECOND_COLOUR_NAMES, visible_appearances
from model.microworld.instances import make_instance
from model.microworld.pool import ScenePool, build_pool
from model.microworld.pool_config import PoolConfig
from model.microworld.scenes import draw_specs, render_scenes


def test_a_step_draws_the_same_samples_on_any_number_of_workers() -> None:
    whole = draw_indices(5, 3, 0, 1, 1000, 32)
    parts = [draw_indices(5, 3, rank, 4, 1000, 32) for rank in range(4)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(draw_indices(5, 4, 0, 1, 1000, 32), whole)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch 32 does not divide among 3 workers"):
        draw_indices(0, 0, 0, 3, 10, 32)


def test_crops_are_centred_on_the_object() -> None:
    picture = torch.zeros(1, 1, 64, 64)
    picture[:, :, 8:24, 36:52] = 1
    crop = crop_around(picture, picture, 32)
    rows, columns = crop[0, 0].nonzero().unbind(1)
    assert abs(float(rows.float().mean()) - 15.5) < 0.6
    assert abs(float(columns.float().mean()) - 15.5) < 0.6
    assert 0.3 < float(crop.mean()) < 0.9


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PoolConfig, ScenePool]:
    folder, config = tmp_path_factory.mktemp("pool"), PoolConfig(count=20, seed=9)
    return folder, config, build_pool(folder, config, workers=2)


def test_a_pool_holds_the_scenes_of_its_configuration(pool: tuple[Path, PoolConfig, ScenePool]) -> None:
    _, config, scenes = pool
    specs = draw_specs(config.split, config.count, config.seed, views=2)
    assert np.abs(scenes.image.astype(int) - render_scenes(specs).image).max() <= 1
    assert scenes.captions == tuple(spec.caption.text for spec in specs)
    index = np.arange(20)
    assert (scenes.category[scenes.partner(index)] == scenes.category).all()
    assert make_instance(specs[0].subject.instance).id == specs[1].subject.instance
    seen = visible_appearances([spec.subject for spec in specs])
    assert [PATTERN_NAMES[label] for label in scenes.pattern] == [own.pattern for own in seen]
    assert [SECOND_COLOUR_NAMES[label] for label in scenes.second_colour] == [own.second_colour for own in seen]


def test_a_pool_is_built_once_and_again_when_its_configuration_changes(
    pool: tuple[Path, PoolConfig, ScenePool], tmp_path: Path
) -> None:
    folder, config = Path(shutil.copytree(pool[0], tmp_path / "pool")), pool[1]
    written = (folder / "image.npy").stat().st_mtime_ns
    build_pool(folder, config, workers=1)
    assert (folder / "image.npy").stat().st_mtime_ns == written
    build_pool(folder, PoolConfig(count=20, seed=10), workers=1)
    assert (folder / "image.npy").stat().st_mtime_ns != written


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_pool_is_built_while_a_thread_waits_for_stdin(tmp_path: Path) -> None:
    """A stage's process has such a thread: it waits for the end of its runner."""
    code = (
        "import sys, threading; from pathlib import Path\n"
        "from model.microworld.pool import build_pool; from model.microworld.pool_config import PoolConfig\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=sys.stdin.read, daemon=True).start()\n"
        f"    build_pool(Path({str(tmp_path / 'pool')!r}), PoolConfig(count=2))\n"
        "    print('built', flush=True)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, script],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "built\n"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
