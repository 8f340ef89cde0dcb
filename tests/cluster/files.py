"""The files of cluster/ as the tests read them: filled in as the README says, and their groups of nodes in one shape."""

import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
AUTOSCALER_FILES = ("aws.yaml", "gcp.yaml")
KUBERAY_FILES = ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml")
FILLED_IN = {
    "REGISTRY": "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
    "SECURITY_GROUP_ID": "sg-0123456789abcdef0",
    "ACCOUNT_ID": "123456789012",
    "PROJECT_ID": "my-project",
    "AMI_ID": "ami-0123456789abcdef0",
    "BUCKET": "my-bucket",
    "PREFIX": "csat",
    "REGION": "eu-central-1",
    "ZONE": "eu-central-1-a",
}


class Group(NamedTuple):
    """Nodes of one kind: how many at most, and what each gives to Ray."""

    max_nodes: int
    cpus: int
    gpus: int
    store_bytes: int


def read(name: str) -> str:
    """A file of cluster/, as it is."""
    return (CLUSTER / name).read_text()


def filled(name: str, **values: str) -> str:
    """A file of cluster/ with its words in capitals replaced."""
    text = read(name)
    for word, value in {**FILLED_IN, **values}.items():
        text = re.sub(rf"\b{word}\b", value, text)
    return text


def load(name: str) -> dict:
    """A YAML file of one document, filled in."""
    return yaml.safe_load(filled(name))


def ray_cluster_spec(name: str) -> dict:
    """The spec of the Ray cluster in a KubeRay manifest."""
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def groups(name: str) -> dict[str, Group]:
    """Group name → Group, the head included, of an autoscaler's or a KubeRay file."""
    if name in AUTOSCALER_FILES:
        config = load(name)
        return {
            group: Group(1 if group == config["head_node_type"] else kind["max_workers"], *_resources(kind["resources"]))
            for group, kind in config["available_node_types"].items()
        }
    spec = ray_cluster_spec(name)
    kinds = [("head", 1, spec["headGroupSpec"])]
    kinds += [(group["groupName"], group["maxReplicas"], group) for group in spec["workerGroupSpecs"]]
    return {group: Group(most, *_start_params(kind["rayStartParams"])) for group, most, kind in kinds}


def limits(name: str) -> str:
    """CSAT_CLUSTER_LIMITS as the driver on the head will find it."""
    if name in AUTOSCALER_FILES:
        options = [option for option in load(name)["docker"]["run_options"] if "CSAT_CLUSTER_LIMITS" in option]
        (option,) = options
        return option.removeprefix("--env CSAT_CLUSTER_LIMITS=")
    (container,) = ray_cluster_spec(name)["headGroupSpec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}["CSAT_CLUSTER_LIMITS"]


def pinned(name: str, package: str) -> str:
    """The version that a requirements file pins."""
    found = re.findall(rf"^{re.escape(package)}(?:\[[^]]*])?==(\S+)$", (ROOT / name).read_text(), re.MULTILINE)
    (version,) = found
    return version


def image_tag() -> str:
    """What every image of the project must be called: its version, Ray's and Python's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = project["requires-python"].removeprefix(">=").replace(".", "")
    return f"csat-on-ray:{project['version']}-ray{pinned('requirements.txt', 'ray')}-py{python}"


def _resources(resources: dict) -> tuple[int, int, int]:
    return resources.get("CPU", 0), resources.get("GPU", 0), resources["object_store_memory"]


def _start_params(params: dict[str, str]) -> tuple[int, int, int]:
    return int(params["num-cpus"]), int(params.get("num-gpus", 0)), int(params["object-store-memory"])
