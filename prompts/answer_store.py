"""Answers of language models in a folder. What was paid for is never asked, and never paid for, twice.

An answer is found by what was asked: endpoint, model, messages, sampling, and how often the same was asked before.
Nothing else of a configuration matters. An entry is written before a request is sent, with what that may cost, and
again when the answer comes: a process that is killed in between leaves a trace of the cost. Entries are replaced as a
whole, and only the process that holds an entry's lock asks for it.

The folder may be one of an object store. There an object is written whole, and entries have no locks: a run folder has
one run at a time, and only the threads of a process keep out of each other's way.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompts.errors import StoppedError
from prompts.tokens import used_tokens

if TYPE_CHECKING:
    from upath import UPath

_LOCK_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a language model is asked.

    Attributes:
        endpoint: The base URL.
        messages: With role and content.
        turn: How often the same was asked before.
    """

    endpoint: str
    model: str
    messages: tuple[dict[str, str], ...]
    temperature: float
    answer_tokens: int
    turn: int = 0

    @property
    def asked(self) -> dict[str, Any]:
        """It in JSON's types; the URL in one of its spellings."""
        server, slashes, rest = self.endpoint.partition("://")
        host, slash, path = rest.partition("/")
        endpoint = f"{server.lower()}{slashes}{host.lower()}{slash}{path}".rstrip("/")
        return asdict(self) | {"endpoint": endpoint, "messages": list(self.messages)}

    @property
    def key(self) -> str:
        """Its digest."""
        return _digest(self.asked)


@dataclass
class Entry:
    """A question in the store, with its answer if there is one.

    Attributes:
        unanswered_tokens: What requests that were not answered may have cost.
        answer_tokens: What the answer has cost.
        completion: The body of the answer.
    """

    question: Question
    path: Path | UPath
    secret: str | None = None
    unanswered_tokens: int = 0
    answer_tokens: int = 0
    completion: dict[str, Any] | None = None

    @property
    def cost(self) -> int:
        """Tokens that the question has cost, or may have."""
        return self.unanswered_tokens + self.answer_tokens

    def begin(self, tokens: int) -> None:
        """Note that a request is sent, and what it may cost."""
        self.unanswered_tokens += tokens
        self._write()

    def fail(self, reserved: int, cost: int) -> None:
        """Note what a request without an answer may have cost; an entry without costs goes."""
        self.unanswered_tokens += cost - reserved
        if self.unanswered_tokens:
            self._write()
        else:
            self.path.unlink(missing_ok=True)

    def answer(self, completion: dict[str, Any], reserved: int) -> int:
        """Keep an answer; returns what it has cost, which is all that was reserved if it does not say."""
        self.unanswered_tokens -= reserved
        used = used_tokens(completion)
        self.completion, self.answer_tokens = self._without_secret(completion), reserved if used is None else used
        self._write()
        return self.answer_tokens

    def read(self) -> bool:
        """Read the entry; returns whether it is there but damaged, which counts as no answer.

        Raises:
            OSError: An object store cannot be read: what is there must not be paid for again.
        """
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return False
        except OSError:
            if not isinstance(self.path, Path):
                raise
            return True
        try:
            stored = json.loads(text)
            content = stored["entry"]
            if stored["sha256"] != _digest(content) or content["question"] != self.question.asked:
                return True
        except (ValueError, KeyError, TypeError, RecursionError):
            return True
        self.unanswered_tokens = content["unanswered_tokens"]
        self.completion, self.answer_tokens = content["completion"], content["answer_tokens"]
        return False

    def _write(self) -> None:
        content = {
            "question": self.question.asked,
            "unanswered_tokens": self.unanswered_tokens,
            "answer_tokens": self.answer_tokens,
            "completion": self.completion,
        }
        text = json.dumps({"sha256": _digest(content), "entry": content})
        if not isinstance(self.path, Path):
            self.path.fs.pipe_file(self.path.path, text.encode())
            return
        partial = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.partial")
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            if self.completion is not None:  # it has cost money: also a power cut must not lose it
                os.fsync(file.fileno())
        partial.replace(self.path)

    def _without_secret(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Some servers repeat the key."""
        text = json.dumps(completion)
        quoted = json.dumps(self.secret or "")[1:-1]
        return json.loads(text.replace(quoted, "***")) if quoted and quoted in text else completion


@dataclass
class AnswerStore:
    """The entries in a folder, which processes and threads share.

    Attributes:
        folder: Made when the first entry is written.
        secret: A text that is not written.
        damaged: Names of entries that could not be read; their questions are asked again.
        answered: Keys of the questions of this process that have an answer.
    """

    folder: Path | UPath
    secret: str | None = field(default=None, repr=False)
    damaged: list[str] = field(default_factory=list, init=False)
    answered: set[str] = field(default_factory=set, init=False)
    _asked: dict[str, threading.Lock] = field(default_factory=dict, init=False, repr=False)

    def read(self, question: Question) -> Entry:
        """The entry of a question as it is now."""
        entry = Entry(question, self.folder / f"{question.key}.json", self.secret)
        entry.read()
        if entry.completion is not None:
            self.answered.add(question.key)
        return entry

    @contextmanager
    def entry(self, question: Question, stopped: threading.Event) -> Iterator[Entry]:
        """The entry of a question; who asks for the same waits for it.

        Raises:
            StoppedError: `stopped` was set meanwhile.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = self.read(question)
        if entry.completion is not None:
            yield entry
            return
        with self._locked(question.key, stopped):
            if entry.read():
                self.damaged.append(entry.path.name)
            yield entry
            if entry.completion is not None:
                self.answered.add(question.key)

    @contextmanager
    def _locked(self, key: str, stopped: threading.Event) -> Iterator[None]:
        if isinstance(self.folder, Path):
            with _file_locked(self.folder / f"{key}.lock", stopped):
                yield
            return
        lock = self._asked.setdefault(key, threading.Lock())
        while not lock.acquire(timeout=_LOCK_POLL_SECONDS):
            if stopped.is_set():
                raise StoppedError
        try:
            yield
        finally:
            lock.release()


@contextmanager
def _file_locked(path: Path, stopped: threading.Event) -> Iterator[None]:
    """Hold a lock file, which is removed afterwards."""
    while True:
        with path.open("a") as lock:
            while not _try_lock(lock.fileno()):
                if stopped.wait(_LOCK_POLL_SECONDS):
                    raise StoppedError
            if _is_current(path, lock.fileno()):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_current(path: Path, descriptor: int) -> bool:
    """Whether the lock file still has its name: who held it before has removed it otherwise."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
