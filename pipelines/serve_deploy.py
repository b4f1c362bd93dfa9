"""The server as an application for `serve deploy`, Ray's command for clusters: `infra/serve/realword.yaml`.

Where `python pipeline.py serve` waits beside its server, here a deployment of the application loads the model and
follows the registry.
"""

# Serve reads the type of the builder's argument, so that no annotation of this module may be a text.

import logging
import os
import tempfile
import threading
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray import serve

from pipelines.cli.painting_run import painting_run
from pipelines.execution.environment import set_environment
from pipelines.served_adapter import served_adapter
from pipelines.served_registry import served_registry
from stages.config import Config
from stages.serve.api_keys import VARIABLE, check_exposure, parse_api_keys
from stages.serve.app import front_application
from stages.serve.champion import ChampionFollower
from stages.serve.ray_serve import check_gpus, delete_painters_of_deleted, deploy_painters
from stages.serve.shipped import shipped_model_of
from stages.serve.uploaded_concepts import FOLDER
from stages.storage import store_path


class Arguments(BaseModel):
    """`args` of the application in the file."""

    model_config = ConfigDict(extra="forbid")

    profile: str = "micro"
    run_folder: str | None = Field(default=None, description="None: run.tracking_uri, or the shipped model.")
    settings: list[str] = Field(default=[], description='As after --set: "serve.max_replicas=4".')

    @field_validator("run_folder")
    @classmethod
    def _absolute(cls, folder: str | None) -> str | None:
        if folder is not None and "://" not in folder and not Path(folder).is_absolute():
            raise ValueError(f"run_folder must be a URI, or an absolute path on all machines, not {folder!r}")
        return folder

    @property
    def uploads(self) -> Path | None:
        """The folder of uploaded concepts; without a run folder on a disk there is none that all machines share."""
        folder = None if self.run_folder is None else store_path(self.run_folder)
        return folder / FOLDER if isinstance(folder, Path) else None

    def all_settings(self) -> list[str]:
        """With the run folder among them."""
        return [*self.settings, *([f"run.folder={self.run_folder}"] if self.run_folder else [])]


@serve.deployment
class Manager:
    """Loads the model and follows the registry.

    Args:
        arguments: Of the application.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._app = serve.get_replica_context().app_name
        self._temporary = tempfile.TemporaryDirectory()
        self._stopped = threading.Event()
        config, store, shipped = painting_run(arguments.profile, arguments.all_settings(), "register")
        set_environment(config.profile)
        check_gpus(config.serve)
        log = logging.getLogger("ray.serve")
        self._follower = ChampionFollower(
            registry=served_registry(config, store, Path(self._temporary.name)),
            shipped=shipped_model_of(config) if shipped else None,
            deploy=lambda model: deploy_painters(model, config.serve, arguments.uploads, log.warning, self._app),
            say=log.warning,
            given=served_adapter(config, arguments.settings),
        )
        self._follower.deploy(self._follower.choose())
        threading.Thread(target=self._follow, args=[config.serve.registry_check_seconds], daemon=True).start()

    def _follow(self, seconds: float) -> None:
        while not self._stopped.wait(seconds):
            self._follower.check()

    def __del__(self) -> None:
        """Called by Serve when this replica ends, and by Python afterwards."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        delete_painters_of_deleted(self._app)
        self._temporary.cleanup()


def application(arguments: Arguments) -> serve.Application:
    """The front and its manager, which deploys the painters."""
    config: Config = painting_run(arguments.profile, arguments.all_settings(), "register")[0]
    manager = Manager.options(ray_actor_options={"num_cpus": 0})  # type: ignore[attr-defined]
    keys = parse_api_keys(os.environ.get(VARIABLE))
    check_exposure(config.serve, keys)
    return front_application(config.register.model_name, config.serve, keys, arguments.uploads, manager.bind(arguments))
