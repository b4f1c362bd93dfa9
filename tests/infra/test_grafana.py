"""The Grafana board and Prometheus' configuration: every metric and label is one that is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from stages.serve.web.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "infra" / "grafana"
BOARD: dict[str, Any] = json.loads((FOLDER / "realword.json").read_text())
_RAYS_BOARDS = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
RAYS_TEXT = "".join(file.read_text() for file in sorted(_RAYS_BOARDS.glob("*_panels.py")))
#: Of Prometheus itself.
_GENERAL = {"le", "instance"}


def targets() -> Iterator[dict[str, Any]]:
    for panel in BOARD["panels"]:
        yield from panel.get("targets", [])


def own_metrics() -> dict[str, set[str]]:
    """The labels of each series of the server."""
    found = {}
    for collector in Metrics().registry._collector_to_names:
        labels = set(collector._labelnames)  # type: ignore[attr-defined]
        found.update({name: labels for name in Metrics().registry._names_to_collectors if name in _names(collector)})
    return found


def _names(collector: object) -> set[str]:
    name, kind = collector._name, collector._type  # type: ignore[attr-defined]
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[kind]
    return {name + ending for ending in endings}


def unknown(expression: str, legend: str) -> list[str]:
    """The metrics and labels that neither the server nor Ray has."""
    own = own_metrics()
    metrics = set(re.findall(r"\b(?:realword|ray)_[a-z0-9_]+", re.sub(r"by \([^)]*\)", "", expression)))
    groups = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", group)}
    labels = groups | set(re.findall(r"\{\{(\w+)\}\}", legend)) | set(re.findall(r"(\w+)=~?\"", expression))
    wrong = [name for name in metrics if name not in own and not re.search(rf"\b{name}\b", RAYS_TEXT)]
    ours = set().union(*(own[name] for name in metrics if name in own))
    for label in labels - _GENERAL - ours:
        if not any(name.startswith("ray_") for name in metrics) or not re.search(rf"\b{label}\b", RAYS_TEXT):
            wrong.append(label)
    return wrong


def test_every_metric_and_label_is_there() -> None:
    assert not [found for target in targets() for found in unknown(target["expr"], target["legendFormat"])]


@pytest.mark.parametrize(
    ("expression", "legend", "named"),
    [
        ("rate(realword_request_total[5m])", "", "realword_request_total"),
        ("realword_pictures", "", "realword_pictures"),
        ("sum(ray_node_cpu_use)", "", "ray_node_cpu_use"),
        ("sum by (rout) (realword_requests_total)", "", "rout"),
        ("realword_requests_total", "{{state}}", "state"),
        ('realword_requests_total{code="200"}', "", "code"),
    ],
)
def test_what_is_not_there_is_found(expression: str, legend: str, named: str) -> None:
    assert unknown(expression, legend) == [named]


def test_the_board_shows_every_metric_of_the_server() -> None:
    shown = " ".join(target["expr"] for target in targets())
    stems = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in own_metrics()}
    assert not [stem for stem in stems if stem not in shown]


def test_panels_have_places_and_numbers_of_their_own() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (place["x"] + dx, place["y"] + dy)
        for place in (panel["gridPos"] for panel in panels)
        for dx in range(place["w"])
        for dy in range(place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_prometheus_asks_the_services_of_the_compose_file() -> None:
    services = yaml.safe_load((FOLDER.parent / "compose.yaml").read_text())["services"]
    for job in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            assert target.split(":")[0] in services
    assert f"--metrics-export-port={_port('ray')}" in services["ray-head"]["command"]


def _port(job: str) -> str:
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    (target,) = next(found for found in jobs if found["job_name"] == job)["static_configs"][0]["targets"]
    return str(target).split(":")[1]
