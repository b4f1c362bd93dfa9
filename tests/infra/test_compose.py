"""infra/compose.yaml: what refers to what, and what other machines could see of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli.arguments import IMAGE, parse_arguments
from pipelines.config.loading import load_config
from stages.contract import StageError
from stages.serve.api_keys import ApiKeys, check_exposure

FOLDER = Path(__file__).parents[2] / "infra"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
OWN = [name for name, service in SERVICES.items() if "realword" in service["image"]]


def test_it_has_what_a_machine_needs() -> None:
    assert {"s3", "postgres", "mlflow", "ray-head", "pipeline", "serve"} <= SERVICES.keys()
    assert set(OWN) == {"mlflow", "ray-head", "pipeline", "serve"}
    assert all(SERVICES[name]["image"] == f"${{REALWORD_IMAGE:-{IMAGE}}}" for name in OWN)


def test_what_is_referred_to_is_there() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= SERVICES.keys()
        assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        for condition in service["depends_on"].values() if isinstance(service.get("depends_on"), dict) else []:
            assert condition == {"condition": "service_healthy"}
    for url in re.findall(r"https?://([\w.-]+):\d+", TEXT) + re.findall(r"@([\w.-]+)/mlflow", TEXT):
        assert url in SERVICES or url in ("127.0.0.1", "localhost")


def test_a_service_that_is_waited_for_has_a_check() -> None:
    waited = {name for service in SERVICES.values() for name in service.get("depends_on", {})}
    assert all("healthcheck" in SERVICES[name] for name in waited - {"prometheus"})


def test_ports_are_this_machines_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    assert not any("network_mode" in service or "privileged" in service for service in SERVICES.values())


def test_no_secret_stands_in_the_file() -> None:
    """Every one comes from the user's infra/.env, and compose says which is missing."""
    secret = re.compile(r"KEY|PASSWORD|TOKEN|SECRET")
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if secret.search(name):
                assert re.fullmatch(r"\$\{\w+:\?see infra/compose\.env\.example\}", value), name
    needed = {name for name in re.findall(r"\$\{(\w+):\?", TEXT)} | {"REALWORD_METRICS_KEY"}
    example = dict(re.findall(r"^(\w+)=(.*)$", (FOLDER / "compose.env.example").read_text(), re.MULTILINE))
    assert example == dict.fromkeys(needed, "")


def test_images_of_others_are_pinned_and_our_containers_have_no_privileges() -> None:
    for name, service in SERVICES.items():
        if name in OWN:
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
        else:
            assert re.fullmatch(r"[\w/]+:v?\d+\.\d+(\.\d+)?(-alpine)?", service["image"])


def test_the_pipeline_and_the_endpoint_take_their_arguments() -> None:
    pipeline = [*SERVICES["pipeline"]["entrypoint"], *SERVICES["pipeline"]["command"]]
    submitted = pipeline[pipeline.index("--") + 1 :]
    for words, command in ((submitted, "run"), (SERVICES["serve"]["command"], "serve")):
        assert words[:2] == ["python", "pipeline.py"]
        arguments = parse_arguments(words[2:])
        assert arguments.command == command, shlex.join(words)
        assert load_config(arguments.profile, arguments.settings).run.folder == "s3://realword/runs/micro"


def test_the_endpoint_asks_for_keys() -> None:
    settings = parse_arguments(SERVICES["serve"]["command"][2:]).settings
    with pytest.raises(StageError, match="without an API key"):
        check_exposure(load_config("micro", settings).serve, ApiKeys())
    assert "REALWORD_API_KEYS" in SERVICES["serve"]["environment"]


def test_ray_needs_its_token() -> None:
    for name in ("ray-head", "pipeline"):
        assert SERVICES[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" in SERVICES[name]["environment"]
