"""The environment of every test, and the one Ray that tests of stages share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pipelines.execution.environment import set_environment
from tests.support.object_store import ObjectServer, bucket, object_server  # noqa: F401 (fixtures)

REPOSITORY = Path(__file__).resolve().parent.parent
# Ray's workers and the processes that tests start import the project from here, whether it is installed or not.
os.environ["PYTHONPATH"] = str(REPOSITORY)

set_environment("micro")  # before anything imports Ray or MLflow
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs in two processes; more threads would only compete
# A first example that imports something, or a busy machine, is no failure.
settings.register_profile("realword", deadline=None)
settings.load_profile("realword")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """MLflow sets the variable when a test names its store; for the next test it would be the user's choice."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no parallel worker ends with a long one."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


@pytest.fixture(scope="session")
def ray_cluster(object_server: ObjectServer) -> Iterator[str]:  # noqa: F811 (the fixture)
    """The address of a local Ray head that this process is connected to; one for the whole session."""
    from pipelines.execution.environment import temporary_folder
    from stages.ray_tools.cluster import local_cluster

    # A place of its own that is short enough for Ray's sockets: other tests make theirs in the system's.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as home,
        temporary_folder(Path(home)),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in object_server.environment.items():  # workers have the head's environment
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", f"{home}/cache")  # for what they copy from a store
        with local_cluster() as address:
            patch.undo()
            yield address


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, in which an engine may run without Ray."""
    import torch.distributed as dist

    store = tmp_path_factory.mktemp("process_group") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")  # DeepSpeed asks for it; Ray Train sets it for its workers
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()
