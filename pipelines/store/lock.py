"""One run at a time in a run folder.

On a disk the kernel holds the lock and releases it when its process dies. In an object store the lock is a numbered
object, `lock/00000007.json`, that the store creates only once (If-None-Match on S3, a generation match on Google): the
run with the highest number holds the folder. It writes its object again every few seconds; a run that stays silent
has lost its machine, and the next number may be taken. All ages are by the store's clock, so that a wrong clock of a
machine does no harm. KubeRay can start a job twice, and a submitter that was cut off may come back: a run checks that
its number is still the highest before it commits, and stops when it is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from upath import UPath

from pipelines.errors import PipelineError
from stages.storage import modified, read_whole, remove, write_whole

HEARTBEAT_SECONDS = 10.0
#: A run that has been silent for so long is taken for dead.
SILENT_SECONDS = 60.0

_ADVICE = "wait for it, or use another folder with --set run.folder=..."


@contextmanager
def disk_lock(folder: Path, lock: TextIO) -> Iterator[None]:
    """Hold the lock of a folder on a disk by its open lock file, which is closed at the end.

    Raises:
        PipelineError: Another process holds it.
    """
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise PipelineError(
                f"Another run (process {lock.read().strip() or 'unknown'}) is at work in {folder}; {_ADVICE}"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def describe_holder() -> str:
    """Who this process is, for those that find the folder locked."""
    job = os.environ.get("RAY_JOB_SUBMISSION_ID") or os.environ.get("SLURM_JOB_ID")
    return f"{f'job {job}, ' if job else ''}process {os.getpid()} on {socket.gethostname()}"


@dataclass
class StoreLock:
    """The lock of a folder in an object store; use it as a context manager, in the main thread.

    When another run takes the folder, the block gets a SIGTERM; where that is a KeyboardInterrupt (see
    `pipelines.execution.signals`), it ends with the error of `check`.

    Attributes:
        wait: Called while another run's silence is waited for, with a sentence.
    """

    folder: UPath
    wait: Callable[[str], None] = lambda text: None
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    silent_seconds: float = SILENT_SECONDS
    _number: int = 0
    _id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> StoreLock:
        """Take the lock.

        Raises:
            PipelineError: Another run holds it, or the store creates an object twice.
        """
        while not self._take():
            self._await_silence()
        for number in self._numbers():
            if number < self._number:
                remove(self._object(number))
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if kind is KeyboardInterrupt:
            self.check()
        with contextlib.suppress(Exception):  # the store is away: the lock ends by its silence
            if self.is_held():
                write_whole(self._object(self._number), self._content(released=True))

    def is_held(self) -> bool:
        """Whether no other run has taken the folder."""
        return self._highest() == self._number

    def check(self) -> None:
        """Check that this run still holds the folder.

        Raises:
            PipelineError: Another run has taken it.
        """
        if not self.is_held():
            holder = self._read(self._highest()).get("holder")
            raise PipelineError(
                f"Another run ({holder}) has taken {self.folder}, because this one was silent for more than "
                f"{self.silent_seconds:.0f} seconds; this one committed nothing since then and ends."
            )

    def _take(self) -> bool:
        """Create the object after the highest one, if its run has ended or died."""
        highest = self._highest()
        if highest and not self._is_free(highest):
            return False
        self._number = highest + 1
        if not self._create(self._number):
            return False  # another run was faster
        if self._create(self._number):
            raise PipelineError(
                f"The store of {self.folder} creates an object twice (it ignores If-None-Match), so two runs could "
                "not be kept apart; use a store or a version that knows conditional writes."
            )
        return self.is_held()  # a slow run may have created a number that was removed long ago

    def _await_silence(self) -> None:
        """Wait for as long as the highest run says nothing.

        Raises:
            PipelineError: It is alive.
        """
        number = self._highest()
        first = self._read(number)
        self.wait(f"Another run ({first.get('holder')}) has locked {self.folder}; waiting whether it is still alive.")
        while not self._is_free(number):
            time.sleep(self.heartbeat_seconds / 4)
            current = self._highest()
            found = self._read(current)
            if found != first and not self._is_free(current):
                raise PipelineError(f"Another run ({found.get('holder')}) is at work in {self.folder}; {_ADVICE}")

    def _is_free(self, number: int) -> bool:
        """Whether the run of an object has ended or has been silent for too long."""
        if number != self._highest():
            return False
        return self._read(number).get("released", False) or self._age(number) > self.silent_seconds

    def _age(self, number: int) -> float:
        """Seconds since a run's last sign, by the store's clock."""
        probe = self.folder / "lock" / f"clock-{self._id}"
        write_whole(probe, b"")
        try:
            return modified(probe) - self._written(number)
        finally:
            remove(probe)

    def _beat(self) -> None:
        while not self._ended.wait(self.heartbeat_seconds):
            try:
                if not self.is_held():
                    _stop_this_run()
                    return
                write_whole(self._object(self._number), self._content(released=False))
            except Exception:  # the store is away for a moment; `check` finds out what follows from that
                continue

    def _create(self, number: int) -> bool:
        path = self._object(number)
        try:
            path.fs.pipe_file(path.path, self._content(released=False).encode(), mode="create")
        except FileExistsError:
            return False
        return True

    def _content(self, *, released: bool) -> str:
        beats = {"id": self._id, "holder": describe_holder(), "released": released, "time": time.time()}
        return json.dumps(beats)

    def _object(self, number: int) -> UPath:
        return self.folder / "lock" / f"{number:08d}.json"

    def _numbers(self) -> list[int]:
        names = [path.stem for path in (self.folder / "lock").glob("*.json")]
        return [int(name) for name in names if name.isdigit()]

    def _highest(self) -> int:
        return max(self._numbers(), default=0)

    def _read(self, number: int) -> dict[str, Any]:
        """The content of an object; empty when a faster run has removed it."""
        try:
            content: dict[str, Any] = json.loads(read_whole(self._object(number)))
        except FileNotFoundError:
            return {}
        return content

    def _written(self, number: int) -> float:
        return modified(self._object(number))


def _stop_this_run() -> None:
    """Interrupt the main thread: what this run would still write is another one's.

    Not by SIGINT, which shells ignore in background jobs; and only where SIGTERM does not end the process at once.
    """
    if callable(signal.getsignal(signal.SIGTERM)):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
