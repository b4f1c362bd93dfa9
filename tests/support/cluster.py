"""Ray clusters whose nodes share no disk, on one Linux machine, with an S3 server that all nodes reach.

with ray_cluster(s3=True) as cluster:
    head = cluster.start_head()
    data, gpu = cluster.add_nodes(NodeOptions(name="data", labels={"realword/pool": "cpu"}), NodeOptions(name="gpu"))
    driver = head.start("python", "pipeline.py", "run", f"--set=run.folder=s3://{BUCKET}/run", "--ray-address=auto")
    data.kill()
    gpu.disconnect()
    print(driver.wait(600).stdout)
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import Command, Host, Network, missing, network

#: For tests that need nodes: they are skipped, with the reason, where this machine cannot make them.
needs_nodes = pytest.mark.skipif(missing() is not None, reason=missing() or "")

GCS_PORT = 6379
DASHBOARD_PORT = 8265
BUCKET = "realword"
_START_ATTEMPTS = 3
S3_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}

#: Small nodes that start fast. The head gives up a silent node after about ten seconds; Ray's default is a minute.
_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """A node of the cluster.

    Attributes:
        name: Its host name.
        cpus: That Ray hands out.
        gpus: Likewise; no GPU is there.
        resources: Custom resources.
        labels: Of Ray's label scheduling, such as `realword/pool`.
        environment: Variables of all its processes.
        object_store: Bytes of its object store.
        shared: Folders of this machine, below a private folder such as /tmp, that it mounts as from a file server.
    """

    name: str
    cpus: int = 2
    gpus: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    object_store: int = 128 * 2**20
    shared: tuple[str, ...] = ()


@dataclass
class Cluster:
    """A head and its nodes. A node is a `Host` with Ray: `kill`, `disconnect`, `reconnect`, `run`, `start`."""

    network: Network
    environment: dict[str, str]
    head: Host | None = None
    _options: dict[str, NodeOptions] = field(default_factory=dict)
    _servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """host:port of the head."""
        assert self.head is not None, "start_head() comes first"
        return f"{self.head.address}:{GCS_PORT}"

    @property
    def dashboard(self) -> str:
        """The address to which jobs are submitted; this machine reaches it as well."""
        assert self.head is not None, "start_head() comes first"
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    def start_head(self, options: NodeOptions = NodeOptions(name="head", cpus=1)) -> Host:
        """Start the head, with the dashboard."""
        words = ("--head", f"--port={GCS_PORT}", "--dashboard-host=0.0.0.0")
        self.head, starting = self._start(options, *words)
        self._finish(self.head, starting, *words)
        return self.head

    def add_node(self, options: NodeOptions) -> Host:
        """Start a node that joins the head."""
        return self.add_nodes(options)[0]

    def add_nodes(self, *options: NodeOptions) -> list[Host]:
        """Start nodes side by side."""
        started = [self._start(node, f"--address={self.address}") for node in options]
        for host, starting in started:
            self._finish(host, starting, f"--address={self.address}")
        return [host for host, _ in started]

    def host(self, name: str) -> Host:
        """The latest host of this name."""
        return next(host for host in reversed(self.network.hosts) if host.name == name)

    def add_laptop(self, name: str = "laptop", environment: Mapping[str, str] | None = None) -> Host:
        """A host of the same network without Ray."""
        return self.network.add_host(name, {**self.environment, **(environment or {})})

    def rejoin(self, host: Host) -> None:
        """Start Ray again on a host whose Ray has ended, as it does on a node that was cut off for long."""
        self._finish(host, self._start_ray(host, f"--address={self.address}"), f"--address={self.address}")

    def nodes(self) -> list[dict[str, Any]]:
        """The head's list of nodes: node_name, node_ip, state, labels, resources_total."""
        query = urllib.request.Request(f"{self.dashboard}/api/v0/nodes?limit=1000")
        if token := self.environment.get("RAY_AUTH_TOKEN"):
            query.add_header("Authorization", f"Bearer {token}")
        return list(json.loads(_answer(query))["data"]["result"]["result"])

    def wait_for_nodes(self, count: int, seconds: float = 60) -> None:
        """Wait until the head counts this many nodes alive, itself included."""
        deadline = time.monotonic() + seconds
        while (alive := sum(node["state"] == "ALIVE" for node in self.nodes())) != count:
            assert time.monotonic() < deadline, f"{alive} of {count} nodes are alive"
            time.sleep(0.5)

    def start_s3(self) -> None:
        """Start the S3 server with an empty bucket; the variables with which clients find it go to all later hosts."""
        endpoint = f"http://{self.network.gateway}:{self._serve_s3()}"
        self.environment |= {"AWS_ENDPOINT_URL": endpoint, **S3_CREDENTIALS}

    def _serve_s3(self) -> int:
        with socket.create_server((self.network.gateway, 0)) as free:
            port = int(free.getsockname()[1])
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "moto.server"]
        words = ["-H", self.network.gateway, "-p", str(port)]
        server = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._servers.append(server)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                bucket = f"http://{self.network.gateway}:{port}/{BUCKET}"
                _answer(urllib.request.Request(bucket, method="PUT", headers={"Authorization": _SIGNED}))
                return port
            assert server.poll() is None, "moto's S3 server ended"
            assert time.monotonic() < deadline, "moto's S3 server does not answer"
            time.sleep(0.1)

    def _start(self, options: NodeOptions, *words: str) -> tuple[Host, Command]:
        host = self.network.add_host(options.name, {**self.environment, **options.environment}, shared=options.shared)
        self._options[host.name] = options
        return host, self._start_ray(host, *words)

    def _start_ray(self, host: Host, *words: str) -> Command:
        options = self._options[host.name]
        return host.start(
            *("ray", "start", *words, f"--node-ip-address={host.address}", "--disable-usage-stats"),
            *(f"--num-cpus={options.cpus}", f"--num-gpus={options.gpus}"),
            f"--object-store-memory={options.object_store}",
            f"--resources={json.dumps(dict(options.resources))}",
            f"--labels={','.join(f'{key}={value}' for key, value in options.labels.items())}",
            cwd=Path("/tmp"),
        )

    def _finish(self, host: Host, starting: Command, *words: str) -> None:
        """Wait until Ray has started. Its processes must find each other in 30 s, which a busy machine may miss."""
        for _ in range(_START_ATTEMPTS - 1):
            if starting.wait(180).returncode == 0:
                return
            host.run("ray", "stop", "--force")
            starting = self._start_ray(host, *words)
        ended = starting.wait(180)
        assert ended.returncode == 0, f"Ray did not start on {host.name}: {ended.stdout}"

    def close(self) -> None:
        """End the servers; the network ends the hosts."""
        for server in self._servers:
            server.kill()
            server.wait()


#: moto finds the service in it; it checks no signature.
_SIGNED = "AWS4-HMAC-SHA256 Credential=test/20250101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=test"


@contextmanager
def ray_cluster(
    *, token: str | None = None, s3: bool = False, environment: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A cluster for the block, without nodes yet.

    Args:
        token: With which the nodes authenticate each other and jobs; None: without authentication.
        s3: Whether an S3 server runs, whose bucket is `BUCKET`.
        environment: Variables of all hosts.
    """
    authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
    with network() as made:
        cluster = Cluster(made, {**_RAY, **authentication, **(environment or {})})
        try:
            if s3:
                cluster.start_s3()
            yield cluster
        finally:
            cluster.close()


def _answer(request: urllib.request.Request) -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        return bytes(answer.read())
