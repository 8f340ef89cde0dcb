"""The KubeRay manifests against the operator's own schema, and what must be true of every pod."""

import json
from copy import deepcopy

import jsonschema
import pytest
import yaml

from tests.cluster.files import KUBERAY_FILES, filled, load, ray_cluster_spec

SCHEMAS = {"RayCluster": "rayclusters.openapi.json", "RayJob": "rayjobs.openapi.json"}
every_file = pytest.mark.parametrize("name", KUBERAY_FILES)


def strict(schema: dict) -> dict:
    """An openAPIV3Schema as JSON Schema that refuses unknown fields, as `kubectl apply --validate=strict` does."""
    schema = {key: _strict(key, value) for key, value in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("anyOf", None)
        schema["type"] = ["integer", "string"]
    if (
        "properties" in schema
        and "additionalProperties" not in schema
        and "x-kubernetes-preserve-unknown-fields" not in schema
    ):
        schema["additionalProperties"] = False
    return schema


def _strict(key: str, value):
    if key == "properties":
        return {name: strict(inner) for name, inner in value.items()}
    if key in ("items", "additionalProperties") and isinstance(value, dict):
        return strict(value)
    return value


@pytest.fixture(scope="session")
def check(shared_data):
    """`check(manifest)` raises jsonschema.ValidationError where the operator's schema would refuse it."""
    schemas = {kind: strict(json.loads((shared_data("kuberay") / file).read_text())["v1"]) for kind, file in SCHEMAS.items()}
    return lambda manifest: jsonschema.Draft7Validator(schemas[manifest["kind"]]).validate(manifest)


@every_file
def test_the_operator_accepts_it(name, check):
    manifest = load(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    check(manifest)


@every_file
def test_the_operator_would_refuse_a_mistake(name, check):
    manifest = load(name)

    def changed(change):
        copied = deepcopy(manifest)
        change(copied["spec"].get("rayClusterSpec", copied["spec"]))
        return copied

    for mistake in (
        lambda spec: spec.update(enableAutoscaling=True),
        lambda spec: spec["workerGroupSpecs"][0].update(maxReplica=3),
        lambda spec: spec["headGroupSpec"]["template"]["spec"].update(nodeselector={}),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["authOptions"].update(mode="tokens"),
        lambda spec: spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["resources"].update(limit={}),
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(changed(mistake))


def test_the_job_brings_the_cluster_that_stays():
    stays, comes = ray_cluster_spec("kuberay/raycluster.yaml"), ray_cluster_spec("kuberay/rayjob.yaml")
    # The operator asks the job server of a RayJob over the pods' network; of the other, only a port-forward reaches it.
    assert stays["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    assert stays == comes


@every_file
def test_pods_are_unprivileged_and_are_somebody_in_the_cloud(name):
    spec = ray_cluster_spec(name)
    templates = [(spec["headGroupSpec"]["template"], "csat-head")]
    templates += [(group["template"], "csat-worker") for group in spec["workerGroupSpecs"]]
    for template, account in templates:
        pod = template["spec"]
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "csat-on-ray"
        assert pod["serviceAccountName"] == account
        assert pod["restartPolicy"] == "Never", "the autoscaler's version 2 needs it"
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert not any("AWS" in entry["name"] or "TOKEN" in entry["name"] for entry in container.get("env", []))
    assert spec["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False


@every_file
def test_what_ray_is_told_fits_into_the_pods_and_their_groups(name):
    for group in ray_cluster_spec(name)["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        limits, params = container["resources"]["limits"], group["rayStartParams"]
        assert int(params["num-cpus"]) <= int(limits["cpu"])
        assert params.get("num-gpus", "0") == limits.get("nvidia.com/gpu", "0")
        assert int(params["object-store-memory"]) < 0.4 * int(limits["memory"].removesuffix("Gi")) * 2**30
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
        selected = group["template"]["spec"]["nodeSelector"]["csat-on-ray/pool"]
        assert selected == group["groupName"] == group["template"]["metadata"]["labels"]["app.kubernetes.io/component"]


@every_file
def test_the_token_comes_from_a_secret(name):
    spec = ray_cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token", "secretName": "csat-ray-token"}


def test_access_guards_the_pods_that_the_manifests_make():
    found = {(part["kind"], part["metadata"]["name"]): part for part in yaml.safe_load_all(filled("kuberay/access.yaml"))}
    head = ray_cluster_spec("kuberay/rayjob.yaml")["headGroupSpec"]["template"]
    labels = head["metadata"]["labels"].items()
    accounts = {name for kind, name in found if kind == "ServiceAccount"}
    assert accounts == {"csat-head", "csat-worker"}
    assert not any(kind == "Secret" for kind, _ in found)
    budget = found["PodDisruptionBudget", "csat-head"]["spec"]
    assert budget["selector"]["matchLabels"].items() == labels
    # Ray's pods have an owner without a scale subresource: anything but a whole number of minAvailable blocks nothing.
    assert budget == {"minAvailable": 1, "selector": budget["selector"]}
    policy = found["NetworkPolicy", "csat-ray"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels
    assert policy["policyTypes"] == ["Ingress"]
    within, operator = policy["ingress"]
    assert within["from"] == [{"podSelector": policy["podSelector"]}]
    assert [port["port"] for port in operator["ports"]] == [8265]
    assert {part["metadata"].get("namespace", "csat") for part in found.values()} == {"csat"}


def test_only_the_head_and_the_trainers_keep_their_place():
    spec = ray_cluster_spec("kuberay/rayjob.yaml")
    templates = {"head": spec["headGroupSpec"]["template"]}
    templates |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    keep = {
        name
        for name, template in templates.items()
        if template["metadata"].get("annotations", {}).get("cluster-autoscaler.kubernetes.io/safe-to-evict") == "false"
    }
    assert keep == {"head", "trainers"}
