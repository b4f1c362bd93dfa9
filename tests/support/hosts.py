"""Hosts that share no disk, on one Linux machine: processes in namespaces of their own, on a bridge of their own.

Each host has its own network, processes, name, /tmp, home folder and shared memory. The code and the Python
environment are the same on all and read-only, as an image's. Everything ends with the process that made it, even by
SIGKILL, except an empty bridge, which the next one takes over.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]

#: Folders that a host has for itself; their content is gone with it.
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm", str(Path.home()))
#: What is on every host, read-only.
IMAGE = (str(REPOSITORY), sys.prefix, sys.base_prefix)

_TIE = ["setpriv", "--pdeathsig", "KILL"]  # the process ends with its parent
_NAMESPACES = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
_TOOLS = ("ip", "setpriv", "unshare", "nsenter", "bash", "mount")


@functools.cache
def missing() -> str | None:
    """Why this machine cannot make hosts; None when it can."""
    if tools := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"hosts in namespaces need {', '.join(tools)}"
    tried = subprocess.run(
        [*_NAMESPACES, "sh", "-c", "mount -t tmpfs none /mnt && ip link add rw type bridge"], capture_output=True
    )
    if tried.returncode:
        return f"this machine allows no namespaces (root is needed): {tried.stderr.decode().strip()}"
    return None


@dataclass
class Command:
    """A command that runs on a host."""

    entered: subprocess.Popen[bytes]
    file: IO[bytes]

    @property
    def printed(self) -> str:
        """What it has printed so far, to standard output and error."""
        return os.pread(self.file.fileno(), 2**30, 0).decode(errors="replace")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the command itself."""
        for child in psutil.Process(self.entered.pid).children():
            child.send_signal(number)

    def wait(self, seconds: float) -> subprocess.CompletedProcess[str]:
        """Wait for the end; `stdout` of what is returned has standard error too.

        Raises:
            subprocess.TimeoutExpired: It has not ended in time.
        """
        code = self.entered.wait(seconds)
        return subprocess.CompletedProcess(str(self.entered.args), code, self.printed, "")


@dataclass
class Host:
    """One host. Make it with `Network.add_host`."""

    name: str
    address: str
    link: str  # this machine's end of the host's cable
    bridge: str
    environment: dict[str, str]
    process: subprocess.Popen[str]
    init: int  # the host's first process, by its number here

    def start(self, *words: str, environment: Mapping[str, str] | None = None, cwd: Path = REPOSITORY) -> Command:
        """Start a command; `cwd` and `words` are as the host sees them."""
        variables = [f"{name}={value}" for name, value in {**self.environment, **(environment or {})}.items()]
        inside = ["nsenter", "-t", str(self.init), "-m", "-n", "-p", "-i", "-u", f"--wd={cwd}", "env", "-i"]
        file = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe that nobody reads would stop the command
        command = [*_TIE, *inside, *variables, *words]
        return Command(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file), file)

    def run(
        self,
        *words: str,
        seconds: float = 120,
        environment: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
    ) -> str:
        """Run a command; returns what it printed.

        Raises:
            AssertionError: It failed or did not end in time.
        """
        command = self.start(*words, environment=environment, cwd=cwd)
        try:
            ended = command.wait(seconds)
        except subprocess.TimeoutExpired as error:
            command.send_signal(signal.SIGKILL)
            raise AssertionError(f"{shlex.join(words)} on {self.name} did not end: {command.printed}") from error
        assert ended.returncode == 0, f"{shlex.join(words)} on {self.name} failed: {ended.stdout}"
        return str(ended.stdout)

    def folder(self, path: str | Path) -> Path:
        """A path of the host's disk, as this machine reaches it while the host lives."""
        return Path(f"/proc/{self.init}/root", str(path).lstrip("/"))

    def kill(self) -> None:
        """End all processes of the host at once, as a loss of power does. Its disk is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self.process.wait(30)
        subprocess.run(["ip", "link", "delete", self.link], capture_output=True)  # the kernel does it too, but later

    def disconnect(self) -> None:
        """Cut the host off from the network: packets are lost, connections stay open."""
        _ip("link", "set", self.link, "nomaster")

    def reconnect(self) -> None:
        """End the cut."""
        _ip("link", "set", self.link, "master", self.bridge)


@dataclass
class Network:
    """A bridge with its hosts. This machine has an address there too, for servers that all hosts reach."""

    bridge: str
    prefix: str
    hosts: list[Host] = field(default_factory=list)

    @property
    def gateway(self) -> str:
        """The address of this machine on the bridge."""
        return f"{self.prefix}.1"

    def add_host(
        self,
        name: str,
        environment: Mapping[str, str] | None = None,
        memory: str = "1g",
        image: Sequence[str] = (),
        shared: Sequence[str] = (),
    ) -> Host:
        """Start a host.

        Args:
            name: Its host name.
            environment: Of its commands.
            memory: The size of its shared memory.
            image: Paths, besides `IMAGE`, that it has too.
            shared: Folders of this machine that it mounts, as from a file server.
        """
        number = len(self.hosts) + 2
        process = subprocess.Popen(
            [
                *_TIE,
                *_NAMESPACES,
                "bash",
                "-ec",
                _setup(name, f"{self.prefix}.{number}", memory, [*IMAGE, *image], shared),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        assert said == "ready", f"host {name} did not start: {said} {process.stdout.read()}"
        host = Host(
            name=name,
            address=f"{self.prefix}.{number}",
            link=f"{self.bridge}-{number}",
            bridge=self.bridge,
            environment=_variables(environment or {}),
            process=process,
            init=psutil.Process(process.pid).children()[0].pid,
        )
        self.hosts.append(host)
        self._plug(host)
        return host

    def _plug(self, host: Host) -> None:
        _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", str(host.init))
        _ip("link", "set", host.link, "master", self.bridge, "up")
        host.run("ip", "link", "set", "lo", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        # Libraries find the host's address by the route to a public one; nothing is forwarded there.
        host.run("ip", "route", "add", "default", "via", self.gateway)


@contextmanager
def network() -> Iterator[Network]:
    """A network of its own for the block; its hosts and its bridge are removed at the end."""
    made = _make_bridge()
    try:
        yield made
    finally:
        for host in made.hosts:
            host.kill()
        _ip("link", "delete", made.bridge)


def _make_bridge() -> Network:
    """Take the first free bridge; making one fails when another test process has it."""
    for number in range(256):
        bridge = f"rwtest{number}"
        if subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True).returncode == 0:
            break
        if _is_left_over(bridge):
            subprocess.run(["ip", "link", "delete", bridge], capture_output=True)  # for the next one
    else:
        raise RuntimeError("there are 256 networks of tests already: ip link show type bridge")
    _ip("link", "set", bridge, "alias", str(os.getpid()))
    _ip("address", "add", f"10.213.{number}.1/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    return Network(bridge=bridge, prefix=f"10.213.{number}")


def _is_left_over(bridge: str) -> bool:
    """Whether the test process that made the bridge has ended."""
    try:
        owner = Path(f"/sys/class/net/{bridge}/ifalias").read_text().strip()
    except OSError:
        return False
    return owner.isdigit() and not psutil.pid_exists(int(owner))


def _setup(name: str, address: str, memory: str, image: Sequence[str], shared: Sequence[str]) -> str:
    """What a host's first process does: private folders, the image in them, a name that resolves; then it waits.

    It is a shell, which also reaps the processes whose parents have ended.
    """
    kept = [path for path in dict.fromkeys(map(os.path.realpath, [*image, *shared])) if Path(path).exists()]
    writable = set(map(os.path.realpath, shared))
    hidden = [path for path in kept if any(path == top or path.startswith(f"{top}/") for top in PRIVATE)]
    lines = ["mount --make-rprivate /", "mount -t tmpfs image /mnt", "mkdir /mnt/etc"]
    for number, path in enumerate(hidden):
        lines += [f"mkdir /mnt/{number}", f"mount --bind {shlex.quote(path)} /mnt/{number}"]
    for folder in PRIVATE:
        size = memory if folder == "/dev/shm" else "4g"
        lines += [f"mount -t tmpfs -o mode=1777,size={size} own {shlex.quote(folder)}"]
    for number, path in enumerate(hidden):
        lines += [f"mkdir -p {shlex.quote(path)}", f"mount --move /mnt/{number} {shlex.quote(path)}"]
        lines += [] if path in writable else [f"mount -o remount,bind,ro {shlex.quote(path)}"]
    lines += [
        f"hostname {name}",
        f"printf '127.0.0.1 localhost\\n{address} {name}\\n' > /mnt/etc/hosts",
        ": > /mnt/etc/resolv.conf",  # there is no name server; a question to one would wait
        "mount --bind /mnt/etc/hosts /etc/hosts",
        "mount --bind /mnt/etc/resolv.conf /etc/resolv.conf",
        "mount -o remount,bind,ro /",
        "echo ready",
        "while true; do sleep 86400 & wait $!; done",
    ]
    return "\n".join(lines)


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a host's commands: nothing of this process's, whose settings are for a local Ray."""
    return {
        "PATH": os.pathsep.join(
            [str(Path(sys.prefix, "bin")), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        ),
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
