"""Serve's configuration in the RayService, against Serve's own schema."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from pipelines.config.loading import load_config
from pipelines.manifests.endpoint import FILE, serve_config
from pipelines.serve_deploy import Arguments
from stages.config import Config
from stages.contract import StageError
from stages.serve.api_keys import ApiKeys, check_exposure

SETTINGS: dict[str, list[str]] = {
    "none": [],
    "replicas": ["serve.replicas=2", "serve.max_replicas=4"],
    "no maximum": ["serve.max_replicas=null"],
    "host names": ["serve.allowed_hosts=[paint.example]"],
    "another host": ["serve.host=127.0.0.1"],
    "a key for all": ["serve.allow_anonymous=true", "serve.timeout_seconds=5"],
    "another model": ["register.model_name=another"],
    "of the training": ["train_adapter.trainer.workers=4"],
}


def config_of(settings: list[str]) -> tuple[Config, list[str]]:
    settings = ["run.folder=s3://bucket/run", *settings]
    return load_config("sd15", settings), settings


@pytest.mark.parametrize("case", SETTINGS)
def test_serve_accepts_it_and_the_server_gets_the_settings(case: str) -> None:
    config, settings = config_of(SETTINGS[case])
    found = serve_config(config, settings, "realword-serve-svc")
    assert_is_whole(found)
    (application,) = ServeDeploySchema.model_validate(found).applications
    arguments = Arguments.model_validate(application.args)
    served = load_config(arguments.profile, arguments.all_settings()).serve
    assert (served.replicas, served.max_replicas) == (config.serve.replicas, config.serve.max_replicas)
    assert arguments.uploads is None
    assert served.timeout_seconds == config.serve.timeout_seconds
    assert set(served.allowed_hosts) == {*config.serve.allowed_hosts, "realword-serve-svc", "*.svc.cluster.local"}
    assert application.args["run_folder"] == "s3://bucket/run"


def test_other_machines_need_a_key_unless_the_user_lets_everyone_in() -> None:
    for settings, open_to_all in ([], False), (["serve.allow_anonymous=true"], True):
        args = serve_config(*config_of(settings), "service")["applications"][0]["args"]
        served = load_config(args["profile"], args["settings"]).serve
        if open_to_all:
            check_exposure(served, ApiKeys())
        else:
            with pytest.raises(StageError, match="without an API key"):
                check_exposure(served, ApiKeys())


def test_it_is_the_file_for_serve_deploy_with_the_runs_values() -> None:
    found, file = serve_config(*config_of([]), "service"), yaml.safe_load(FILE.read_text())
    for config in (found, file):
        del config["http_options"]["host"], config["applications"][0]["args"]
    assert found == file


@pytest.mark.parametrize("place", ["deployment", "application", "http_options", "top"])
def test_a_mistyped_key_is_found(place: str) -> None:
    found = serve_config(*config_of([]), "service")
    places = {"top": found, "application": found["applications"][0], "http_options": found["http_options"]}
    if place == "deployment":
        found["applications"][0]["deployments"] = [{"name": "Front", "num_replica": 1}]
    else:
        places[place]["import_pth"] = "anything"
    with pytest.raises((ValidationError, AssertionError)):
        assert_is_whole(found)


def assert_is_whole(found: dict[str, Any]) -> None:
    """Serve's schema accepts it and drops nothing; it ignores some of the keys that it does not know."""
    assert ServeDeploySchema.model_validate(found).model_dump(exclude_unset=True, mode="json") == found
