"""A real server with the model that ships and an API key: no process of Ray learns it, and no log shows it."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from openai import AuthenticationError, OpenAI
from PIL import Image

from model.micro_sd.shipped_adapter import find_shipped_model
from tests.stages.serve.test_server import Server, a_picture, started

pytestmark = pytest.mark.slow
KEY, WORD = "kept-secret-key", "mug"
PROMPT = f"a photo of a [{WORD}] in the very deep snow"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the model that ships, without a registry, and with a key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REALWORD_API_KEYS", f"anna={KEY}")
        with started(None, tmp_path_factory.mktemp("shipped")) as found:
            found.key = KEY
            yield found


def test_the_shipped_model_is_served_without_a_registry(server: Server) -> None:
    shipped = find_shipped_model()
    assert server.printed[0].startswith("There is no registered model in ")
    assert server.printed[-2].startswith(f"Serving {shipped.title} (adapter {shipped.fingerprint}) at ")
    health = requests.get(f"{server.address}/health", timeout=30).json()
    assert health == {"status": "alive", "model": shipped.title}
    made = json.loads(Image.open(io.BytesIO(server.ask(steps=2, seed=7).content)).info["realword"])
    assert (made["model"], made["adapter"], made["seed"]) == (shipped.title, shipped.fingerprint, 7)


def test_keys_are_asked_for_and_stay_where_they_are(server: Server) -> None:
    wrong = OpenAI(base_url=f"{server.address}/v1", api_key="another", max_retries=0)
    with pytest.raises(AuthenticationError, match="API key is wrong") as error:
        wrong.images.edit(image=a_picture(), prompt=PROMPT)
    assert (error.value.code, bool(error.value.request_id)) == ("invalid_api_key", True)
    client = wrong.with_options(api_key=KEY)
    answer = client.images.edit(image=a_picture(), prompt=PROMPT, extra_body={"steps": 2})
    assert answer.data is not None
    pages = [requests.get(f"{server.address}/{path}", timeout=30) for path in ("", "ready", "metrics", "openapi.json")]
    assert [page.status_code for page in pages] == [200, 200, 401, 401]
    ids = [page.headers["x-request-id"] for page in pages]
    assert len(set(ids)) == len(ids)
    assert not any("," in one for one in ids)  # Serve's alone
    metrics = requests.get(f"{server.address}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
    assert 'realword_requests_total{route="other",status="401"} 3.0' in metrics.text
    odd: dict[str, str | bytes] = {
        "X-Request-ID": b"\xff",
        "serve_multiplexed_model_id": b"\xff",
        "x-request-timeout-seconds": "0",
    }
    assert requests.get(f"{server.address}/health", headers=odd, timeout=30).status_code == 200
    rebound = requests.get(f"{server.address}/health", headers={"Host": "evil.example"}, timeout=30)
    assert rebound.status_code == 421
    family = psutil.Process(server.process.pid).children(recursive=True)
    assert len(family) > 5
    assert not [process for process in family if KEY in str((environment_of(process), process.cmdline()))]
    (folder,) = {environment_of(process)["RAY_TMPDIR"] for process in family if "RAY_TMPDIR" in environment_of(process)}
    logs = [file for file in Path(folder).rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(logs) > 10
    assert not [file for file in logs if any(word.encode() in file.read_bytes() for word in (KEY, "very deep"))]
    assert not [line for line in server.printed if KEY in line]


def test_what_is_running_when_the_server_is_stopped_is_finished(server: Server) -> None:
    """The last test of this server."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.ask, steps=40)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert running.result().status_code == 200
    assert server.process.wait(timeout=90) == 0


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
