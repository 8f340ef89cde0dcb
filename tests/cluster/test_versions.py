"""requirements.txt and pyproject.toml are the one source of versions; every file of cluster/ agrees with them."""

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement

from tests.cluster.files import AUTOSCALER_FILES, CLUSTER, KUBERAY_FILES, ROOT, image_tag, load, pinned, ray_cluster_spec, read

FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_every_image_and_ray_version_is_the_pinned_one(path):
    text = path.read_text()
    for image in re.findall(r"csat-on-ray:[\w.-]+", text):
        assert image == image_tag()
    for version in re.findall(r"\bray[-_= ]{0,2}(\d+\.\d+\.\d+)", text, re.IGNORECASE):
        assert version == pinned("requirements.txt", "ray")
    assert not re.search(r":latest\b", text)


@pytest.mark.parametrize("name", AUTOSCALER_FILES)
def test_nodes_run_the_image(name):
    assert load(name)["docker"]["image"].endswith("/" + image_tag())


@pytest.mark.parametrize("name", KUBERAY_FILES)
def test_pods_run_the_image_and_say_its_ray(name):
    spec = ray_cluster_spec(name)
    assert spec["rayVersion"] == pinned("requirements.txt", "ray")
    pods = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    if submitter := load(name)["spec"].get("submitterPodTemplate"):
        pods.append(submitter)
    for pod in pods:
        for container in pod["spec"]["containers"]:
            assert container["image"].endswith("/" + image_tag())


def test_the_dockerfile_builds_on_the_projects_python():
    (base,) = re.findall(r"^FROM (\S+)$", read("Dockerfile"), re.MULTILINE)
    python = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    assert re.fullmatch(rf"python:{re.escape(python)}\.\d+-slim-\w+", base)


def test_packages_of_clusters_are_pinned_once():
    ours, theirs = ROOT / "requirements.txt", CLUSTER / "requirements.txt"
    listed = [
        {Requirement(line).name for line in path.read_text().splitlines() if line and not line.startswith("#")}
        for path in (ours, theirs)
    ]
    assert not listed[0] & listed[1]
    for line in theirs.read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w-]+==[\d.]+", line)


def test_boto3_fits_the_botocore_that_s3fs_brings():
    (wanted,) = [Requirement(line) for line in importlib.metadata.requires("aiobotocore") if line.startswith("botocore")]
    assert wanted.specifier.contains(pinned("cluster/requirements.txt", "boto3"))  # boto3 x.y.z needs botocore x.y.z


def test_the_tests_check_against_the_launchers_own_client():
    package = "google-api-python-client"
    assert pinned("tests/requirements.txt", package) == pinned("cluster/requirements.txt", package)


def test_the_readme_names_the_image():
    assert image_tag() in read("README.md")
