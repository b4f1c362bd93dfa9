"""The application for `serve deploy`: its file and its arguments. `nightly`: a real cluster."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from pipelines.errors import PipelineError, UsageError
from pipelines.serve_deploy import Arguments, application

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "infra" / "serve" / "realword.yaml"


def test_the_shipped_file_is_valid_and_listens_on_the_loopback_interface() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text()))
    (found,) = config.applications
    assert config.http_options.host == "127.0.0.1"
    assert found.import_path == f"{application.__module__}:{application.__name__}"
    built = call_user_app_builder_with_args_if_necessary(application, found.args)  # as Serve calls it
    assert built._bound_deployment.name == "Front"


def test_the_file_is_part_of_the_package() -> None:
    data = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "serve/*.yaml" in data["infra"]


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a relative folder": (
        {"run_folder": "runs/micro"},
        ValidationError,
        "must be a URI, or an absolute path",
    ),
    "an unknown argument": ({"runfolder": "/runs"}, ValidationError, "runfolder"),
    "settings as a mapping": ({"settings": {"serve.replicas": 2}}, ValidationError, "settings"),
    "an unknown setting": ({"settings": ["serve.replica=2"]}, UsageError, "serve.replica"),
    "a wrong value": ({"settings": ["serve.replicas=0"]}, UsageError, "serve.replicas"),
    "values that do not fit": ({"settings": ["serve.replicas=2", "serve.max_replicas=1"]}, UsageError, "max_replicas"),
    "an unknown profile": ({"profile": "sd99"}, UsageError, "sd99"),
    "a folder without a run": ({"run_folder": "/no/such/run"}, PipelineError, "/no/such/run"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused(case: str) -> None:
    arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        application(Arguments.model_validate(arguments))
