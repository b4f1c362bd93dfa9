"""What is checked on the nodes of a cluster before the first stage of a run.

Every living node must have the driver's Python and Ray, the packages and the code, and reach the run folder. What it
lacks is one sentence here; later it would be a traceback of a worker, or a stage that waits for ever.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from stages.config import Config
from stages.contract import StageError
from stages.ray_tools.cluster import cluster_cores, connected_cluster
from stages.ray_tools.gpus import check_gpus, gpu_needs
from stages.ray_tools.runtime_environment import ships_code
from stages.storage import StorePath, remove, write_whole
from stages.storage_errors import storage_error

#: The environment of a node may have to be installed first (`runtime_env` with pip).
ANSWER_SECONDS = 600
#: Stores refuse requests from a clock that is some minutes wrong; locks are judged by their age.
MAX_CLOCK_SECONDS = 5.0
#: Distributions that stages use on workers.
PACKAGES = (
    *("deepspeed", "diffusers", "img2dataset", "numpy", "peft", "pillow", "pyarrow", "safetensors", "tokenizers"),
    *("torch", "transformers", "xxhash"),
)

_REPOSITORY = Path(__file__).resolve().parents[2]
_CODE = ("model", "prompts", "stages")


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What a node has.

    Attributes:
        python: Its version, such as 3.11.7.
        ray: The version.
        packages: The version of each of `PACKAGES` that is installed.
        code: The digest of the project's code.
        clock: Seconds since 1970.
        folder_error: Why the run folder cannot be used from there; None: it can.
    """

    python: str
    ray: str
    packages: dict[str, str]
    code: str
    clock: float
    folder_error: str | None = None


def check_cluster(
    address: str, config: Config, stages: Sequence[str], folder: StorePath, working_dir: str
) -> tuple[int, list[str]]:
    """Check the cluster for a run of these stages into `folder`.

    Returns:
        Its cores, and warnings, a sentence each.

    Raises:
        StageError: It cannot run them.
    """
    with connected_cluster(address, working_dir):
        warnings = check_gpus(gpu_needs(config, stages), f"the Ray cluster at {address}", may_grow=True)
        warnings += check_nodes(folder, same_code=not ships_code(working_dir))
        return cluster_cores(), warnings


def check_nodes(folder: StorePath, *, same_code: bool) -> list[str]:
    """Check every living node of the cluster that this process is connected to; returns warnings.

    Args:
        folder: The run folder, which exists; each node must read and write there what the others do.
        same_code: The nodes have the code from their image, which must be this machine's.

    Raises:
        StageError: A node lacks something; names the node.
    """
    own = report_of_this_machine()
    warnings: list[str] = []
    with _token(folder) as token:
        for node, report, sent in _reports(node_task(folder, token)):
            if problem := problem_of(node, report, own, same_code=same_code):
                raise StageError(problem)
            warnings += warnings_of(node, report, own, sent, time.time())
    return warnings


def problem_of(node: str, report: NodeReport, own: NodeReport, *, same_code: bool) -> str | None:
    """Why a node cannot work for this driver: one sentence; None: it can."""
    if (report.ray, _minor(report.python)) != (own.ray, _minor(own.python)):
        return (
            f"Node {node} has Ray {report.ray} on Python {report.python}, and this machine Ray {own.ray} on Python "
            f"{own.python}: use the same image, or the same versions, on all."
        )
    if missing := [name for name in own.packages if name not in report.packages]:
        return _lacks(node, missing[0])
    if same_code and report.code != own.code:
        return (
            f"Node {node} has another version of the project's code than this machine: use the same image on all, or "
            "--working-dir for the job."
        )
    return f"Node {node}: {report.folder_error}" if report.folder_error else None


def warnings_of(node: str, report: NodeReport, own: NodeReport, sent: float, received: float) -> list[str]:
    """What a user should know about a node that can work.

    Args:
        node: Its name.
        report: Made between `sent` and `received` of this machine's clock.
        own: This machine's.
    """
    warnings = []
    ahead = max(report.clock - received, 0) or min(report.clock - sent, 0)
    if abs(ahead) > MAX_CLOCK_SECONDS:
        direction = "ahead of" if ahead > 0 else "behind"
        warnings.append(f"the clock of node {node} is {abs(ahead):.0f} s {direction} this machine's; let NTP set both")
    other = [
        f"{name} {found}"
        for name, found in report.packages.items()
        if _public(found) != _public(own.packages.get(name))
    ]
    if other:
        warnings.append(f"node {node} has other versions than this machine: {', '.join(other)}")
    return warnings


def report_of_this_machine() -> NodeReport:
    """What this machine has."""
    import ray

    installed = {name: version for name in PACKAGES if (version := installed_version(name))}
    return NodeReport(
        python=platform.python_version(), ray=ray.__version__, packages=installed, code=code_digest(), clock=time.time()
    )


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; None: it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def code_digest(root: Path = _REPOSITORY) -> str:
    """A digest of the project's Python files."""
    digest = hashlib.sha256()
    for file in sorted(file for part in _CODE for file in (root / part).rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def folder_error(folder: StorePath, token: str) -> str | None:
    """Why the run folder cannot be used on this machine: the file `token` there holds its own name."""
    try:
        if (folder / token).read_text() != token:
            return f"the run folder {folder} holds other files there than on this machine; use an object store."
        answer = folder / f"{token}-{uuid.uuid4().hex}"
        answer.write_text(token)
        answer.unlink()
    except FileNotFoundError:
        return (
            f"the run folder {folder} is not on a disk that it shares with this machine: set run.folder to an object "
            "store, such as s3://bucket/run, or to a folder that all nodes mount."
        )
    except Exception as error:  # each store's client has its own
        if sentence := storage_error(error, str(folder)):
            return sentence
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return (
            f"the run folder {folder} cannot be read and written there ({reason}): check its credentials and network."
        )
    return None


def node_task(folder: StorePath, token: str) -> Callable[[], dict[str, Any]]:
    """The function that returns the values of a `NodeReport`, or the module that is `missing`.

    It is sent as code, not by its name, because a node that lacks this package must be able to say so.
    """
    pickled = pickle.dumps(folder)  # its class may be missing too

    def report() -> dict[str, Any]:
        import pickle

        try:
            from stages.ray_tools import preflight

            place = pickle.loads(pickled)
        except ImportError as error:
            return {"missing": error.name}
        return {**vars(preflight.report_of_this_machine()), "folder_error": preflight.folder_error(place, token)}

    return report


def _reports(task: Callable[[], dict[str, Any]]) -> Iterator[tuple[str, NodeReport, float]]:
    """The name, the report, and the time of asking, of each living node.

    Raises:
        StageError: A node cannot run the task, or does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote, sent = ray.remote(num_cpus=0, max_retries=0)(task), time.time()
    asked = {
        node["NodeID"]: (
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(),
        )
        for node in ray.nodes()
        if node["Alive"]
    }
    for identity, (name, answer) in asked.items():
        try:
            values = ray.get(answer, timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            if any(node["NodeID"] == identity and node["Alive"] for node in ray.nodes()):
                raise StageError(_no_answer(name, error)) from error
            continue  # it has just been lost; the cluster works without it
        if missing := values.get("missing"):
            raise StageError(_lacks(name, missing))
        yield name, NodeReport(**values), sent


def _no_answer(name: str, error: Exception) -> str:
    import ray

    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"Node {name} has not answered within {ANSWER_SECONDS} s; look at it with `ray status` and `ray logs`."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ray.exceptions.RuntimeEnvSetupError):
        return f"Node {name} cannot set up the environment of the run: {lines[-1]}"
    return f"Node {name} cannot work for this run: {lines[-1]}"


def _lacks(name: str, module: str) -> str:
    what = "package realword" if module.partition(".")[0] in _CODE else f"Python package {module}"
    return (
        f"Node {name} lacks the {what}: use the project's image there, or submit the run as a job with its code "
        "(--working-dir) and a runtime_env that installs what it needs (pip)."
    )


@contextmanager
def _token(folder: StorePath) -> Iterator[str]:
    """The name of a file in the run folder that holds its own name, for the block."""
    name = f".preflight-{uuid.uuid4().hex}"
    write_whole(folder / name, name)
    try:
        yield name
    finally:
        remove(folder / name)


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _public(version: str | None) -> str | None:
    """A version without what says for which device it was built: 2.13.0 of 2.13.0+cu128."""
    return None if version is None else version.partition("+")[0]
