"""The command `manifests`: write what KubeRay needs to run the pipeline and the endpoint."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from pipelines.config.keys import flat_values
from pipelines.config.loading import load_config
from pipelines.config.paths import local_paths
from pipelines.errors import PipelineError, UsageError
from pipelines.manifests.cluster import Machines
from pipelines.manifests.kuberay import Deployment
from pipelines.manifests.kuberay import manifests as make_manifests
from pipelines.manifests.pods import SECRET, Manifest
from stages.config import Config

#: user:password@host, or one of a URL's parameters.
_PASSWORD = re.compile(
    r"://[^/?#\s@]*:[^/?#\s@]+@"
    r"|[?&]([^=&\s]*(password|passwd|secret|token|signature)[^=&\s]*|[^=&\s]*key|sig)=[^&\s]",
    re.IGNORECASE,
)


def manifests(arguments: argparse.Namespace) -> None:
    """Write the manifests; print their paths."""
    config = load_config(arguments.profile, arguments.settings)
    _check_passwords(arguments.settings)
    _check_folder(config)
    deployment = Deployment(
        config=config,
        settings=arguments.settings,
        image=arguments.image,
        machines=Machines(cpus=arguments.cpus_per_node, gpus=arguments.gpus_per_node),
        gateway=arguments.gateway,
    )
    header = f"# Made by: {_command(arguments)}\n"
    for file in write_manifests(make_manifests(deployment), arguments.output, header):
        print(file)
    for name, path in local_paths(flat_values(config)):
        print(f"warning: {name} is {path}, which pods find only in their image or a volume.", file=sys.stderr)


def write_manifests(resources: dict[str, Manifest], folder: Path, header: str) -> list[Path]:
    """Write each resource to a file of its own; returns the files.

    Raises:
        PipelineError: The folder cannot be written to.
    """
    files = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, resource in resources.items():
            files.append(folder / f"{name}.yaml")
            files[-1].write_text(header + dump(resource), encoding="utf-8")
    except OSError as error:
        raise PipelineError(f"Cannot write to {folder}: {error.strerror}; choose another --output.") from error
    return files


def dump(resource: Manifest) -> str:
    """A resource as YAML, texts of several lines as such, nothing by reference."""
    return yaml.dump(resource, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _command(arguments: argparse.Namespace) -> str:
    """The command line without --output, as one line."""
    words = ["python", "pipeline.py", "manifests", "--profile", arguments.profile]
    for setting in arguments.settings:
        words += ["--set", setting]
    for name in ("image", "cpus_per_node", "gpus_per_node", "gateway"):
        if (value := getattr(arguments, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return " ".join(shlex.join(words).split())


def _check_folder(config: Config) -> None:
    scheme = urlsplit(config.run.folder).scheme
    if scheme in ("", "file", "local", "memory"):
        raise UsageError(
            f"run.folder is {config.run.folder}, and pods share no disk: keep the run in an object store, such as "
            f"--set run.folder=s3://bucket/{config.profile}."
        )


def _check_passwords(settings: Sequence[str]) -> None:
    for setting in settings:
        if _PASSWORD.search(setting):
            raise UsageError(
                f"{setting.partition('=')[0]} holds a password or a signature, and everyone who may read the manifests "
                f"would see it: put it into the Secret {SECRET} as an environment variable (docs/cluster.md)."
            )


class _Dumper(yaml.SafeDumper):
    """Without anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
