"""The files under deploy/: none is run here, but what can be known of them without a container engine is."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pareto_search.cli import cli
from pareto_search.config import SearchConfig

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
FILES = sorted(DEPLOY.glob("*.yaml"))
KUBERNETES = "1.35"


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """A mapping with these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


# The part of ray.io/v1 that the manifests use; a field of another name is one that KubeRay would silently prune.
TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
POD = {"type": "object"}  # validated by Kubernetes' own schema
HEAD = fields(("rayStartParams", "template"), rayStartParams=PARAMETERS, template=POD)
WORKERS = fields(
    ("groupName", "maxReplicas", "minReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=PARAMETERS,
    template=POD,
)
CLUSTER = fields(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["token", "disabled"]}),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
KUBERAY = {
    "RayCluster": CLUSTER,
    "RayJob": fields(
        entrypoint=TEXT,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=CLUSTER,
    ),
    "RayService": fields(serveConfigV2=TEXT, rayClusterConfig=CLUSTER),
}


def documents(kind: str = "") -> Iterator[Any]:
    """All documents of all manifests, or those of a kind."""
    for path in FILES:
        yield from (d for d in yaml.safe_load_all(path.read_text()) if kind in ("", d["kind"]))


def clusters() -> Iterator[Mapping[str, Any]]:
    """The specs of all Ray clusters."""
    for document in documents():
        spec = document.get("spec", {})
        if document["kind"] in KUBERAY:
            yield spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods() -> Iterator[Mapping[str, Any]]:
    """The templates of all pods."""
    for cluster in clusters():
        for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])):
            yield group["template"]
    yield from (d["spec"]["template"] for d in documents("Deployment"))


def test_the_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("the linter comes for x86-64 only")
    ended = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_the_dockerfile_installs_what_is_pinned_and_ends_without_rights() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert all("--constraint constraints.txt" in line for line in text.splitlines() if line.startswith("RUN pip"))
    *_, user = re.findall(r"^USER (.*)$", text, re.MULTILINE)
    assert user == "1000"
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]}
    seen = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    assert copied == seen
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_manifest_fits_the_schemas(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] in KUBERAY:
            assert document["apiVersion"] == "ray.io/v1"
            jsonschema.validate(document["spec"], KUBERAY[document["kind"]])
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_pods_fit_kubernetes_schema_and_have_no_rights() -> None:
    found = list(pods())
    assert len(found) == 6
    for pod in found:
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod["spec"]}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        volumes = {v["name"] for v in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            assert container["image"] == "pareto-search"
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert {m["name"] for m in container.get("volumeMounts", [])} == volumes


def test_a_spelling_mistake_would_be_found() -> None:
    [job] = documents("RayJob")
    with pytest.raises(jsonschema.ValidationError, match="rayClusterSpecs"):
        jsonschema.validate(job["spec"] | {"rayClusterSpecs": {}}, KUBERAY["RayJob"])


def test_the_clusters_have_our_ray_and_want_a_token() -> None:
    [pinned] = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for cluster in clusters():
        assert cluster["rayVersion"] == pinned
        assert cluster["authOptions"] == {"mode": "token"}


def test_the_jobs_command_and_config_are_ours_and_its_nodes_have_what_it_asks_for() -> None:
    [job], [settings] = documents("RayJob"), documents("ConfigMap")
    program, command, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("pareto-search", "run")
    context = cli.commands[command].make_context(command, arguments)
    assert context.params["config"] == Path("/search/search.yaml")
    workers = SearchConfig.parse(yaml.safe_load(settings["data"]["search.yaml"])).workers
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    has = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    places = min(int(has["cpu"]) // workers.cpus, int(has["nvidia.com/gpu"]) // workers.gpus)
    assert group["minReplicas"] * places >= workers.count


def test_the_services_command_is_ours_and_finds_the_cluster() -> None:
    [deployment], [cluster] = documents("Deployment"), documents("RayCluster")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    command, *arguments = container["args"]
    params = cli.commands[command].make_context(command, arguments).params
    assert params["address"] == f"ray://{cluster['metadata']['name']}-head-svc:10001"
    assert params["port"] == container["ports"][0]["containerPort"]
