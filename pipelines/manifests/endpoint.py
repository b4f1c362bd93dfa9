"""Serve's configuration of the endpoint: `infra/serve/realword.yaml`, with a run's folder and settings put in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from pipelines.graph import REPOSITORY
from stages.config import Config

FILE = REPOSITORY / "infra" / "serve" / "realword.yaml"
#: All of a cluster's names end so; no site of the web can have such a name.
_CLUSTER_NAMES = "*.svc.cluster.local"


def serve_config(config: Config, settings: Sequence[str], service: str) -> dict[str, Any]:
    """`serveConfigV2` for a configuration.

    Args:
        config: What `settings` make of their profile.
        settings: "key=value", as after --set.
        service: The name of the Kubernetes service by which other pods ask.
    """
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    found["http_options"]["host"] = "0.0.0.0"  # of the pod; the network policy and API keys say who may ask
    hosts = [*config.serve.allowed_hosts, service, _CLUSTER_NAMES]
    own = [
        f"serve.replicas={config.serve.replicas}",
        f"serve.max_replicas={config.serve.max_replicas or 'null'}",
        "serve.host=0.0.0.0",
        f"serve.allowed_hosts={json.dumps(list(dict.fromkeys(hosts)))}",
    ]
    (application,) = found["applications"]
    application["args"] = {
        "profile": config.profile,
        "run_folder": config.run.folder,
        "settings": [*(text for text in settings if not _is_replaced(text, own)), *own],
    }
    return found


def _is_replaced(setting: str, own: Sequence[str]) -> bool:
    key = setting.partition("=")[0].strip()
    return key == "run.folder" or any(text.startswith(f"{key}=") for text in own)
