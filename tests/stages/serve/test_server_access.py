"""API keys of a real server: no process of Ray learns them, and no log shows them or what was asked."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import requests
from openai import AuthenticationError, OpenAI

from tests.stages.serve.test_server import a_picture, started

pytestmark = pytest.mark.slow
KEY, WORD = "kept-secret-key", "mug"
PROMPT = f"a photo of a [{WORD}] in the very deep snow"


def test_keys_are_asked_for_and_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALWORD_API_KEYS", f"anna={KEY}")
    with started(None, tmp_path) as server:
        wrong = OpenAI(base_url=f"{server.address}/v1", api_key="another", max_retries=0)
        with pytest.raises(AuthenticationError, match="API key is wrong") as error:
            wrong.images.edit(image=a_picture(), prompt=PROMPT)
        assert (error.value.code, bool(error.value.request_id)) == ("invalid_api_key", True)
        client = wrong.with_options(api_key=KEY)
        answer = client.images.edit(image=a_picture(), prompt=PROMPT, extra_body={"steps": 2})
        assert answer.data is not None
        pages = [
            requests.get(f"{server.address}/{path}", timeout=30) for path in ("", "ready", "metrics", "openapi.json")
        ]
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
        (folder,) = {
            environment_of(process)["RAY_TMPDIR"] for process in family if "RAY_TMPDIR" in environment_of(process)
        }
        logs = [file for file in Path(folder).rglob("*") if file.is_file() and not file.is_symlink()]
        assert len(logs) > 10
        assert not [file for file in logs if any(word.encode() in file.read_bytes() for word in (KEY, "very deep"))]
    assert not [line for line in server.printed if KEY in line]


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
