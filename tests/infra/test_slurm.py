"""The batch script for Slurm, with a `srun` that runs its command here: what it starts, passes on and ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "infra" / "slurm" / "realword.sbatch"

SRUN = """
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
SCONTROL = """
if [[ $1 == show ]]; then printf '%s\\n' ${SLURM_JOB_NODELIST//,/ }; else echo "$*" >> "$LOGS/scontrol"; fi
"""
#: Stays as `ray start --block` does.
RAY = """
echo "$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN} $*" >> "$LOGS/ray"
[[ $* != *"$BROKEN"* ]] || exit 1
trap 'echo "end $*" >> "$LOGS/ray"; exit 0' TERM
while :; do sleep 0.05; done
"""
#: Counts nodes (`python - ADDRESS N`), or is the driver, which ends with CODE, or with ON_TERM after SIGTERM.
PYTHON = """
if [[ $1 == - ]]; then
  cat > /dev/null
  sleep 0.1
  [[ $BROKEN == none || $BROKEN == --address= && $3 == 1 ]] && (($(grep -c ' start ' "$LOGS/ray") >= $3))
  exit
fi
echo "$*" >> "$LOGS/driver"
trap 'echo term >> "$LOGS/driver"; exit ${ON_TERM:-130}' TERM
for _ in {1..40}; do [[ -z ${CODE:-} ]] || exit "$CODE"; sleep 0.05; done
exit 99
"""


class Job:
    """The script at work on two nodes."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        programs, self.logs = folder / "programs", folder / "logs"
        programs.mkdir()
        self.logs.mkdir(exist_ok=True)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("ray", RAY), ("python", PYTHON)):
            (programs / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (programs / name).chmod(0o755)
        self.id = str(os.getpid())
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "LOGS": str(self.logs),
                "SLURM_JOB_ID": self.id,
                "SLURM_JOB_NODELIST": "localhost,localhost",
                "SLURM_CPUS_ON_NODE": "2",
                "BROKEN": "none",
                **variables,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, name: str) -> None:
        end = time.monotonic() + 20
        while not (self.logs / name).exists():
            assert time.monotonic() < end
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        try:
            _, errors = self.process.communicate(timeout=60)
        finally:
            self.process.terminate()  # the script ends what it has started
        assert not Path(f"/tmp/realword-{self.id}").exists()
        return self.process.returncode, errors

    def lines(self, name: str) -> list[str]:
        file = self.logs / name
        return file.read_text().splitlines() if file.exists() else []


@pytest.mark.slow
def test_the_driver_gets_the_arguments_and_ray_a_token(tmp_path: Path) -> None:
    job = Job(tmp_path, "--profile", "sd15", "--set", "run.folder=s3://a b/c", CODE="0")
    assert job.end()[0] == 0
    (driver,) = job.lines("driver")
    assert driver.startswith("pipeline.py run --ray-address 127.0.0.1:")
    assert driver.endswith(" --profile sd15 --set run.folder=s3://a b/c")
    head, worker, *ends = job.lines("ray")
    assert head.startswith("token 64 start --block --num-cpus=2 --head ")
    assert worker.startswith("token 64 start --block --num-cpus=2 --address=127.0.0.1:")
    assert ["--head" in end for end in ends] == [False, True]  # the head is the last to go


@pytest.mark.slow
@pytest.mark.parametrize("code", [1, 2, 130])
def test_its_exit_code_is_the_drivers(code: int, tmp_path: Path) -> None:
    job = Job(tmp_path, CODE=str(code))
    assert job.end()[0] == code
    assert job.lines("scontrol") == []
    assert sum("end" in line for line in job.lines("ray")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "on_term", "code", "scontrol"),
    [
        (signal.SIGUSR1, "130", None, "requeue"),  # the time limit is near: on from the checkpoint
        (signal.SIGUSR1, "0", 0, ""),  # it was done
        (signal.SIGTERM, "130", 130, ""),  # cancelled
        (signal.SIGINT, "130", 130, ""),
    ],
)
def test_a_signal_stops_the_driver_first(
    number: signal.Signals, on_term: str, code: int | None, scontrol: str, tmp_path: Path
) -> None:
    job = Job(tmp_path, ON_TERM=on_term)
    job.wait_for("driver")
    time.sleep(0.1)
    job.process.send_signal(number)
    found, _ = job.end()
    assert job.lines("driver")[1:] == ["term"]
    assert job.lines("scontrol") == ([f"requeue {job.id}"] if scontrol else [])
    assert code is None or found == code
    assert sum("end" in line for line in job.lines("ray")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["--head", "--address="])
def test_ray_that_does_not_start_on_a_node_ends_the_job(broken: str, tmp_path: Path) -> None:
    job = Job(tmp_path, BROKEN=broken)
    code, errors = job.end()
    assert code == 1
    assert "error: Ray does not run on all of the nodes localhost localhost" in errors
    assert job.lines("driver") == []
    assert sum("end" in line for line in job.lines("ray")) == (broken == "--address=")


def test_it_is_for_sbatch_alone() -> None:
    found = subprocess.run(["bash", str(SCRIPT)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert found.returncode != 0
    assert "submit this script with sbatch" in found.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)


@pytest.mark.nightly
def test_a_stage_runs_on_a_real_ray(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (programs / name).chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    variables = {
        **inherited,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LOGS": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost,localhost",
        "SLURM_CPUS_ON_NODE": "4",
    }
    words = ["bash", str(SCRIPT), "--stage", "prompts", "--set", f"run.folder={tmp_path / 'run'}"]
    with subprocess.Popen(words, env=variables, cwd=REPOSITORY) as process:
        try:
            assert process.wait(600) == 0
        finally:
            process.terminate()  # the script ends its Ray
    assert list((tmp_path / "run" / "stages" / "prompts").glob("*/manifest.json"))
    assert not Path(f"/tmp/realword-{os.getpid()}").exists()
