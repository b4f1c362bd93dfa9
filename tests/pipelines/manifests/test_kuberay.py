"""The manifests, against KubeRay's definitions and the rules that its operator checks beyond them."""

from __future__ import annotations

import copy
import functools
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipelines.cli.arguments import parse_arguments
from pipelines.cli.manifests import dump
from pipelines.config.loading import load_config
from pipelines.manifests.cluster import Machines
from pipelines.manifests.kuberay import Deployment, manifests
from pipelines.manifests.pods import LABELS
from tests.support.kuberay import FOLDER, errors_of, part

needs_definitions = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"KubeRay's definitions are not at {FOLDER}")

#: (profile, settings, further values of the deployment)
CASES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "micro": ("micro", [], {}),
    "sd15": ("sd15", [], {}),
    "sdxl": ("sdxl", [], {}),
    "google's store": ("sd15", ["run.folder=gs://bucket/run"], {}),
    "azure's store": ("sd15", ["run.folder=abfs://container@account.dfs.core.windows.net/run"], {}),
    "a registry with a port and a digest": ("sd15", [], {"image": f"host:5000/a/b@sha256:{'0' * 64}"}),
    "a gateway": ("sd15", [], {"gateway": "istio"}),
    "no GPU": ("sd15", ["train_adapter.trainer.use_gpu=false", "evaluate.use_gpu=false", "serve.use_gpu=false"], {}),
    "one GPU in a node": ("sd15", [], {"machines": Machines(gpus=1)}),
    "odd nodes": ("sd15", [], {"machines": Machines(cpus=3, gpus=3)}),
    "nodes larger than needed": ("micro", [], {"machines": Machines(cpus=96, gpus=8)}),
    "cached latents": ("sd15", ["cache_latents.enabled=true"], {}),
    "shares of GPUs": ("sd15", ["filter.scoring.actors=5"], {}),
    "many workers": ("sd15", ["train_adapter.trainer.workers=64", "curriculum.batch_size=128"], {}),
    "more replicas while requests wait": ("sd15", ["serve.replicas=2", "serve.max_replicas=20"], {}),
    "an endpoint on CPUs": ("micro", ["serve.replicas=3", "serve.max_replicas=5"], {}),
    "own host names": ("sd15", ["serve.allowed_hosts=[paint.example, '*.internal']"], {}),
    "a list of subjects": ("sd15", ["customize.subjects=[a dog, the cat]", "customize.words=[dog, cat]"], {}),
    "quotes and a dollar": ("sd15", ['prompts.model=it\'s $HOME `a` "b"'], {}),
    "letters of other scripts": ("sd15", ["prompts.model=μοντέλο"], {}),
    "a setting twice": ("sd15", ["serve.replicas=2", "serve.replicas=3"], {}),
    "a local model": ("sdxl", ["backbone.weights=/models/sdxl"], {}),
}


@functools.cache
def deployment_of(case: str) -> Deployment:
    profile, settings, values = CASES[case]
    settings = ["run.folder=s3://bucket/run", *settings]
    return Deployment(config=load_config(profile, settings), settings=settings, **{"image": "realword:1", **values})


@functools.cache
def applied(case: str) -> dict[str, dict[str, Any]]:
    """The resources as kubectl reads them from the files."""
    return {name: yaml.safe_load(dump(resource)) for name, resource in manifests(deployment_of(case)).items()}


@needs_definitions
@pytest.mark.parametrize("case", CASES)
def test_kuberays_definitions_hold(case: str) -> None:
    for resource in applied(case).values():
        assert _problems(resource) == []


@pytest.mark.parametrize("case", CASES)
def test_the_operators_rules_hold(case: str) -> None:
    resources = applied(case)
    for resource in resources.values():
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", resource["metadata"]["name"])
    for cluster in _clusters(resources):
        _check_cluster(cluster)


TYPOS: dict[str, tuple[str, list[str | int]]] = {
    "of a job": ("rayjob", ["spec", "shutdownAfterJobFinished"]),
    "of its retries": ("rayjob", ["spec", "backofflimit"]),
    "of the submitter's pod": ("rayjob", ["spec", "submitterPodTemplate", "spec", "restartpolicy"]),
    "of a cluster": ("raycluster", ["spec", "authOption"]),
    "of the head": ("raycluster", ["spec", "headGroupSpec", "rayStartParam"]),
    "of a group": ("raycluster", ["spec", "workerGroupSpecs", 0, "maxReplica"]),
    "of a container": (
        "raycluster",
        ["spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "securitycontext"],
    ),
    "of a service": ("rayservice", ["spec", "serveConfig"]),
    "of its upgrade": ("rayservice", ["spec", "upgradeStrategy", "clusterUpgradeOption"]),
    "of a nightly job": ("raycronjob", ["spec", "jobTemplate", "entryPoint"]),
    "of its schedule": ("raycronjob", ["spec", "timezone"]),
    "of a rule of the network": ("networkpolicy", ["spec", "ingress", 0, "port"]),
}


@needs_definitions
@pytest.mark.parametrize("case", TYPOS)
def test_a_mistyped_key_is_found(case: str) -> None:
    name, path = TYPOS[case]
    resource = copy.deepcopy(manifests(deployment_of("sd15"))[name])
    place: Any = resource
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "anything"
    assert any(str(path[-1]) in problem for problem in _problems(resource))


@pytest.mark.parametrize("case", CASES)
def test_the_entrypoint_is_the_users_command(case: str) -> None:
    deployment = deployment_of(case)
    entrypoint = manifests(deployment)["rayjob"]["spec"]["entrypoint"]
    # A shell reads it, as in KubeRay's submitter.
    found = subprocess.run(["bash", "-c", f"printf '%s\\0' {entrypoint}"], capture_output=True, check=True)
    words = found.stdout.decode().split("\0")[:-1]
    assert words == shlex.split(entrypoint)
    assert words[:2] == ["python", "pipeline.py"]
    arguments = parse_arguments(words[2:])
    assert (arguments.command, arguments.stage, arguments.ray_address) == ("run", "all", None)
    assert load_config(arguments.profile, arguments.settings) == deployment.config


def test_an_upgrade_goes_step_by_step_through_a_gateway_alone() -> None:
    at_once, by_steps = (manifests(deployment_of(case))["rayservice"]["spec"] for case in ("sd15", "a gateway"))
    assert at_once["upgradeStrategy"] == {"type": "NewCluster"}
    assert by_steps["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    assert by_steps["upgradeStrategy"]["clusterUpgradeOptions"]["gatewayClassName"] == "istio"
    assert by_steps["rayClusterConfig"]["enableInTreeAutoscaling"]  # or the operator refuses the strategy


def test_the_nightly_job_ingests_without_gpus_and_without_retries() -> None:
    spec = manifests(deployment_of("sd15"))["raycronjob"]["spec"]["jobTemplate"]
    assert "--stage ingest" in spec["entrypoint"]
    assert spec["backoffLimit"] == 0
    assert [group["groupName"] for group in spec["rayClusterSpec"]["workerGroupSpecs"]] == ["cpu"]


def test_only_the_endpoints_pods_get_its_api_keys() -> None:
    for name, resource in manifests(deployment_of("sd15")).items():
        assert ("realword-api-keys" in yaml.safe_dump(resource)) == (name == "rayservice")


def _problems(resource: dict[str, Any]) -> list[str]:
    """By the definition of its kind; of kinds without one, the parts that a definition knows."""
    kind, spec = resource["kind"], resource.get("spec", {})
    if kind == "RayCronJob":  # as in ray-operator/apis/ray/v1/raycronjob_types.go
        unknown = sorted(set(spec) - {"schedule", "timeZone", "suspend", "jobTemplate"})
        return [*unknown, *errors_of(part("RayJob", "spec"), spec["jobTemplate"])]
    if kind == "NetworkPolicy":
        rules = part("RayCluster", "spec", "networkPolicy", "head", "ingressRules")
        return [*sorted(set(spec) - {"podSelector", "policyTypes", "ingress"}), *errors_of(rules, spec["ingress"])]
    if kind == "ServiceAccount":
        return sorted(set(resource) - {"apiVersion", "kind", "metadata"})
    return errors_of(part(kind), resource)


def _clusters(resources: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield resources["rayjob"]["spec"]["rayClusterSpec"]
    yield resources["raycluster"]["spec"]
    yield resources["rayservice"]["spec"]["rayClusterConfig"]
    yield resources["raycronjob"]["spec"]["jobTemplate"]["rayClusterSpec"]


def _check_cluster(cluster: dict[str, Any]) -> None:
    """What the operator's validation.go refuses, and what the project promises."""
    assert cluster["authOptions"]["mode"] == "token"
    assert tuple(int(number) for number in cluster["rayVersion"].split(".")) >= (2, 52, 0)  # the first with tokens
    pools = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert pools.keys() <= {"cpu", "gpu"}
    for name, group in pools.items():
        assert group["labels"] == {"realword/pool": name}
        assert "labels" not in group["rayStartParams"]
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["maxReplicas"] > 0
        limits = _check_pod(group["template"])["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == (name == "gpu")
    assert "nvidia.com/gpu" not in _check_pod(cluster["headGroupSpec"]["template"])["resources"]["limits"]
    assert cluster["headGroupSpec"]["resources"] == {"CPU": "0"}


def _check_pod(template: dict[str, Any]) -> dict[str, Any]:
    """Returns the only container."""
    assert template["metadata"]["labels"] == LABELS
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    (container,) = spec["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "env" not in container  # secrets come by reference
    found: dict[str, Any] = container
    return found
