"""The command `serve`: errors before it starts, and a real server with real requests."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from openai import BadRequestError, OpenAI
from PIL import Image

from model.micro_sd.shipped_adapter import find_shipped_model
from stages.config import Config
from stages.contract import StageError
from stages.serve.registry import Registry as ServedRegistry
from stages.serve.server import check_address, example, run_server
from tests.support.contexts import make_context
from tests.support.registered_model import Registry

_SERVER = """
import json, sys
from pathlib import Path
from pipelines.config.loading import config_from_dict
from stages.serve.server import run_server
from tests.stages.serve.test_server import registry_at
given = json.loads(sys.argv[1])
config = config_from_dict(given["config"], [])
run_server(config, registry_at(given["uri"], config, Path(given["folder"])), shipped=given["uri"] is None)
"""


def a_picture(seed: int = 0, side: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def a_config(folder: Path, **serve: Any) -> Config:
    config: Config = make_context(folder, serve={"port": free_port(), **serve}).config
    return config


def registry_at(uri: str | None, config: Config, folder: Path) -> ServedRegistry:
    name = config.register.model_name
    return ServedRegistry(name=name, locate=lambda: uri, run_folder=folder, profile=config.profile)


# Errors before the server starts


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = a_config(tmp_path, port=other.getsockname()[1])
        with pytest.raises(StageError, match=r"127\.0\.0\.1 port \d+.*--set serve\.port"):
            run_server(config, registry_at(None, config, tmp_path))


@pytest.mark.parametrize("address", [{"host": "no.such.host.invalid"}, {"host": "192.0.2.1"}])
def test_an_impossible_address_is_refused(tmp_path: Path, address: dict[str, Any]) -> None:
    with pytest.raises(StageError, match="cannot listen on"):
        check_address(a_config(tmp_path, **address).serve)


def test_the_error_without_a_champion_names_the_command_that_makes_one(tmp_path: Path) -> None:
    config = a_config(tmp_path)
    with pytest.raises(
        StageError, match=r"no champion of the model realword-micro .*python pipeline\.py run --stage all"
    ):
        run_server(config, registry_at(None, config, tmp_path))


def test_the_example_names_a_picture_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    assert "-F subject=@docs/subject.png -F word=mug " in example("http://localhost:8000", tmp_path)
    subjects = tmp_path / "stages" / "microworld" / "abc" / "subjects"
    subjects.mkdir(parents=True)
    (subjects / "subjects.json").write_text(json.dumps([{"word": "mug", "pictures": ["mug/1/00.png"]}]))
    command = example("http://localhost:8000", tmp_path)
    assert f"subject=@{subjects}/mug/1/00.png" in command
    assert "-F word=mug -F 'prompt=a photo of a mug in the snow'" in command


# A real server


@dataclass
class Server:
    address: str
    process: subprocess.Popen[str]
    printed: list[str]
    key: str = ""

    def ask(
        self, query: str = "", files: Any = None, accept: str = "*/*", timeout: float = 120, **fields: Any
    ) -> requests.Response:
        picture = {"subject": ("subject.png", a_picture(), "image/png")} if files is None else files
        form = {"word": "mug", "prompt": "a photo of a mug in the snow", **fields}
        headers = {"Accept": accept} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        return requests.post(
            f"{self.address}/generate{query}", data=form, files=picture, headers=headers, timeout=timeout
        )

    def refusal(self, **arguments: Any) -> tuple[int, str]:
        response = self.ask(**arguments)
        assert response.headers["content-type"] == "application/json"
        return response.status_code, response.json()["error"]["message"]


@contextlib.contextmanager
def started(registry: Registry | None, folder: Path, **serve: Any) -> Iterator[Server]:
    from pipelines.config.loading import config_to_dict
    from pipelines.execution.environment import temporary_folder

    config = a_config(folder, **serve)
    uri = None if registry is None else registry.uri
    given = {"config": config_to_dict(config), "uri": uri, "folder": str(folder)}
    # A short path: the suite's own temporary folder is long enough for Ray's sockets.
    with tempfile.TemporaryDirectory(dir="/tmp") as short, temporary_folder(Path(short)):
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, json.dumps(given)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        printed: list[str] = []
        try:
            for line in process.stdout:
                printed.append(line)
                if "curl" in line:
                    break
            threading.Thread(target=lambda: printed.extend(process.stdout or ()), daemon=True).start()
            yield Server(f"http://127.0.0.1:{config.serve.port}", process, printed)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def server(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {
        "registry_check_seconds": 0.2,
        "max_batch_size": 2,
        "max_queued_requests": 2,
        "max_picture_bytes": 100_000,
        "max_steps": 1000,
    }
    with started(registry, tmp_path_factory.mktemp("serve"), timeout_seconds=10, **limits) as found:
        yield found


@pytest.mark.slow
def test_a_request_is_answered_with_a_picture(server: Server) -> None:
    title = r"realword-micro version 1 \(adapter train_adapter\)"
    assert re.fullmatch(r"Reading realword-micro version 1 from .*\.\n", server.printed[0])
    assert re.fullmatch(rf"Loading {title}\.\n", server.printed[1])
    assert re.fullmatch(rf"Serving {title} at http://127\.0\.0\.1:\d+/ .*\n", server.printed[-2])
    answer = server.ask()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    made = json.loads(Image.open(io.BytesIO(answer.content)).info["realword"])
    assert (made["model"], made["adapter"], made["word"]) == ("realword-micro version 1", "train_adapter", "mug")
    assert server.ask(seed=0).content == answer.content
    assert server.ask(seed=1).content != answer.content


@pytest.mark.slow
def test_the_mask_and_both_pictures_can_be_requested(server: Server) -> None:
    mask = server.ask("?mask=1")
    assert Image.open(io.BytesIO(mask.content)).mode == "L"
    both = server.ask(accept="application/json").json()
    assert base64.b64decode(both["mask"]) == mask.content
    assert base64.b64decode(both["picture"]) == server.ask().content


@pytest.mark.slow
def test_what_is_cut_off_of_a_prompt_is_said(server: Server) -> None:
    prompt = "a mug in the snow" + " and 雪" * 100
    answer = server.ask(prompt=prompt, steps=1)
    assert answer.status_code == 200
    assert r"does not read the end of the prompt: '\u96ea and \u96ea and" in answer.headers["X-Warning"]
    both = server.ask(accept="application/json", prompt=prompt, steps=1).json()
    assert both["warning"].endswith("and 雪 and 雪'.")


@pytest.mark.slow
def test_page_health_and_request_ids(server: Server) -> None:
    title = "realword-micro version 1"
    page = requests.get(server.address, timeout=30)
    for address in re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text):
        assert requests.get(f"{server.address}/{address}", timeout=30).status_code == 200
    health, ready = (requests.get(f"{server.address}/{name}", timeout=30) for name in ("health", "ready"))
    assert (health.json(), ready.json()) == ({"status": "alive", "model": title}, {"status": "ready", "model": title})
    for path in ("", "/health", "/ready"):
        assert requests.head(f"{server.address}{path}", timeout=30).status_code == 200  # as load balancers ask
    missing = requests.get(f"{server.address}/nowhere", headers={"X-Request-ID": "mine"}, timeout=30)
    assert (missing.status_code, missing.headers["x-request-id"]) == (404, "mine")
    assert len({answer.headers["x-request-id"] for answer in (page, health, ready)}) == 3


@pytest.mark.slow
def test_the_official_client_paints_and_streams(server: Server) -> None:
    client = OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    prompt = "a photo of a [mug] in the snow"
    pictures = client.images.edit(image=a_picture(), prompt=prompt, n=3, extra_body={"seed": 0}).data
    assert pictures is not None
    first, *others = [base64.b64decode(picture.b64_json or "") for picture in pictures]
    assert first == server.ask().content
    assert len(others) == 2
    *partial, completed = list(
        client.images.edit(
            image=a_picture(), prompt=prompt, stream=True, partial_images=2, extra_body={"seed": 0, "steps": 10}
        )
    )
    assert [event.type for event in partial] == ["image_edit.partial_image"] * 2
    assert base64.b64decode(completed.b64_json) == server.ask(steps=10).content
    with pytest.raises(BadRequestError, match=r"dragon.*photo.*mug.*snow") as error:
        client.images.edit(image=a_picture(), prompt=prompt, extra_body={"subjects": '[{"word": "dragon"}]'})
    assert (error.value.param, bool(error.value.request_id)) == ("subjects", True)


@pytest.mark.slow
def test_a_moved_alias_is_followed_without_a_failed_request(server: Server, registry: Registry) -> None:
    registry.register(0.5)  # version 2, which does not become the champion
    stopped = threading.Event()

    def ask_until_stopped() -> list[tuple[int, str]]:
        answers = []
        while not stopped.is_set():
            answer = server.ask()
            made = Image.open(io.BytesIO(answer.content)).info["realword"] if answer.ok else answer.text
            answers.append((answer.status_code, json.loads(made).get("model")))
        return answers

    try:
        with ThreadPoolExecutor(2) as pool:
            clients = [pool.submit(ask_until_stopped) for _ in range(2)]
            for number in ("2", "1"):
                registry.client.set_registered_model_alias("realword-micro", "champion", number)
                wait_for(server, f"Serving realword-micro version {number} (adapter train_adapter).\n")
            stopped.set()
            answers = [answer for client in clients for answer in client.result()]
    finally:
        stopped.set()
        registry.client.set_registered_model_alias("realword-micro", "champion", "1")
    assert set(answers) == {(200, f"realword-micro version {number}") for number in "12"}
    assert requests.get(f"{server.address}/ready", timeout=30).json()["model"] == "realword-micro version 1"


@pytest.mark.slow
def test_an_endless_body_is_refused(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="subject"; filename="a.png"\r\n\r\n'
        for _ in range(100):
            yield b"0" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(f"{server.address}/generate", data=endless(), headers=headers, timeout=60)
    assert answer.status_code == 413


@pytest.mark.slow
def test_too_many_requests_are_refused_with_a_time_to_retry(server: Server) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda seed: server.ask(seed=seed, steps=10), range(20)))
    assert {answer.status_code for answer in answers} >= {200, 429}  # and 504 on a busy machine
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert "try again" in refused[0].json()["error"]["message"]
    assert server.ask().status_code == 200


@pytest.mark.slow
def test_a_picture_that_takes_too_long_is_a_timeout(server: Server) -> None:
    server.ask()  # the server measures how long a step takes
    start = time.monotonic()
    answer = server.ask(steps=999)
    assert time.monotonic() - start < 5  # it is known before
    assert answer.status_code == 504
    assert "more than 10 s" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.slow
def test_work_stops_when_the_client_has_gone(server: Server) -> None:
    def seconds() -> float:
        for _ in range(10):
            start = time.monotonic()
            if (answer := server.ask(steps=20)).status_code != 504:  # the machine is busy with other tests
                break
            time.sleep(5)
        assert answer.status_code == 200
        return time.monotonic() - start

    ratios = []
    for _ in range(3):  # the machine may be busier in one of the measurements
        before = seconds()
        for _ in range(2):  # both places in the batch
            with pytest.raises(requests.Timeout):
                server.ask(steps=20, timeout=before / 4)
        ratios.append(seconds() / before)
        if ratios[-1] < 1.8:
            return
    pytest.fail(f"a request after two that were given up took {ratios} times as long as alone")


@pytest.mark.slow
def test_the_server_stops_at_sigterm(server: Server) -> None:
    """The last test of this server."""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=90) == 0
    time.sleep(0.5)
    assert server.printed[-1] == "Stopped.\n"
    with pytest.raises(requests.ConnectionError):
        requests.get(server.address, timeout=5)


@pytest.mark.slow
def test_a_damaged_model_is_refused_before_anything_starts(registry: Registry, tmp_path: Path) -> None:
    config, model = a_registered_model(registry, "damaged", tmp_path)
    weights = next(model.rglob("adapter/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(StageError, match=r"damaged version 1 .*adapter.*--force register"):
        run_server(config, registry_at(registry.uri, config, tmp_path))


@pytest.mark.slow
def test_a_model_that_the_server_cannot_call_must_be_registered_again(registry: Registry, tmp_path: Path) -> None:
    config, model = a_registered_model(registry, "old", tmp_path)
    settings = next(model.rglob("inference.json"))
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "interface": 1}))
    with pytest.raises(StageError, match=r"old version 1 .*python pipeline\.py run --stage register --force register"):
        run_server(config, registry_at(registry.uri, config, tmp_path))


def test_a_damaged_shipped_model_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = functools.partial(find_shipped_model, adapter=tmp_path / "adapter")
    monkeypatch.setattr("stages.serve.shipped.find_shipped_model", find)
    config = a_config(tmp_path)
    with pytest.raises(StageError, match=r"ships with Realword cannot be used: .*adapter.*; restore "):
        run_server(config, registry_at(None, config, tmp_path), shipped=True)


def wait_for(server: Server, line: str) -> None:
    deadline = time.monotonic() + 90
    while line not in server.printed:
        assert time.monotonic() < deadline, server.printed
        time.sleep(0.1)


def a_registered_model(registry: Registry, name: str, folder: Path) -> tuple[Config, Path]:
    """A configuration that serves a model of its own, and the folder of that model in the registry."""
    from mlflow.artifacts import download_artifacts

    registered, _ = registry.register(0.6, register={"model_name": name})
    config: Config = make_context(folder, serve={"port": free_port()}, register={"model_name": name}).config
    return config, Path(download_artifacts(registered["uri"], tracking_uri=registry.uri))
