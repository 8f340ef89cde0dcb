"""aws.yaml and gcp.yaml: Ray's own validation, what the clouds accept of a node, and what must be true of the settings."""

from copy import deepcopy

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.core.generated.autoscaler_pb2 import ResourceRequest, ResourceRequestByCount

from tests.cluster.files import AUTOSCALER_FILES, load

every_file = pytest.mark.parametrize("name", AUTOSCALER_FILES)


def prepared(config: dict) -> dict:
    """As `ray up` sees it, with Ray's defaults."""
    return prepare_config(deepcopy(config))


@every_file
def test_ray_accepts_it(name):
    validate_config(prepared(load(name)))


@every_file
def test_ray_would_refuse_a_mistake(name):
    config = load(name)
    config["available_node_types"]["teachers"]["max_worker"] = 8
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepared(config))


@every_file
def test_nothing_of_rays_defaults_is_installed_or_opened(name):
    config = prepared(load(name))
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[commands] == [], "Ray's defaults install a nightly Ray"
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start.split()


@every_file
def test_the_token_is_on_every_node_and_not_in_the_file(name):
    config = load(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/csat/.ray/auth_token": "~/.ray/auth_token"}


@every_file
def test_every_group_comes_with_the_work_and_goes(name):
    config = prepared(load(name))
    assert config["head_node_type"] == "head"
    assert all(kind["min_workers"] == 0 for kind in config["available_node_types"].values())
    workers = [kind["max_workers"] for group, kind in config["available_node_types"].items() if group != "head"]
    assert config["max_workers"] == sum(workers), "a smaller total would keep a group from growing as it says"
    assert 0 < config["idle_timeout_minutes"] <= 10


@every_file
def test_the_head_is_on_demand_and_workers_are_spot(name):
    for group, kind in load(name)["available_node_types"].items():
        node = kind["node_config"]
        if name == "aws.yaml":
            is_spot = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        else:
            is_spot = node.get("scheduling", {}).get("provisioningModel") == "SPOT"
        assert is_spot == (group != "head")


@every_file
@pytest.mark.parametrize("group", ["readers", "teachers"])
def test_an_actor_that_ray_data_asks_memory_for_gets_a_node(name, group):
    block_bytes = 200_000_000.0  # what Ray Data measures of the first actors' blocks, it asks for with the later ones
    wanted = {"readers": {"CPU": 1.0}, "teachers": {"CPU": 1.0, "GPU": 1.0}}[group] | {"memory": block_bytes}
    assert nodes_for(wanted, load(name)) == {group: 1}
    silent = load(name)
    del silent["available_node_types"][group]["resources"]["memory"]
    assert group not in nodes_for(wanted, silent)


def nodes_for(wanted: dict[str, float], config: dict) -> dict[str, int]:
    """What Ray's autoscaler would launch of each type, for one actor in a cluster that has no workers."""
    config = AutoscalingConfig(prepared(config), skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=[ResourceRequestByCount(request=ResourceRequest(resources_bundle=wanted), count=1)],
    )
    launched = ResourceDemandScheduler().schedule(request).to_launch
    return {launch.instance_type: launch.count for launch in launched if launch.instance_type != "head"}


def test_ec2_accepts_every_node():
    botocore_session = pytest.importorskip("botocore.session")
    from botocore.validate import ParamValidator

    shape = botocore_session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    config = load("aws.yaml")
    for kind in config["available_node_types"].values():
        report = ParamValidator().validate({**kind["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), report.generate_report()
        node = kind["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["SecurityGroupIds"], "Ray's own security group lets the whole world ssh in"
        assert all(device["Ebs"]["Encrypted"] for device in node["BlockDeviceMappings"])


def test_compute_engine_accepts_every_node():
    documents = pytest.importorskip("googleapiclient.discovery_cache")
    import json

    schemas = json.loads(documents.get_static_doc("compute", "v1"))["schemas"]
    for kind in load("gcp.yaml")["available_node_types"].values():
        assert list(problems(kind["node_config"], schemas["Instance"], schemas)) == []
    wrong = {"machineTyp": "n2-standard-8", "scheduling": [{"preemptible": True}]}
    assert sorted(problems(wrong, schemas["Instance"], schemas)) == [
        "machineTyp: no such field",
        "scheduling: not an object",
    ]


def problems(value, schema: dict, schemas: dict, at: str = ""):
    """What a Google discovery schema does not allow in a value, as "field: why"."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"]]
    kind = schema.get("type")
    if kind == "object":
        if not isinstance(value, dict):
            yield f"{at}: not an object"
            return
        for key, inner in value.items():
            field = f"{at}.{key}" if at else key
            of = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if of is None:
                yield f"{field}: no such field"
            else:
                yield from problems(inner, of, schemas, field)
    elif kind == "array":
        if not isinstance(value, list):
            yield f"{at}: not a list"
            return
        for inner in value:
            yield from problems(inner, schema["items"], schemas, at)
    elif kind == "boolean":
        if not isinstance(value, bool):
            yield f"{at}: not true or false"
    elif kind == "string":
        if schema.get("format") in ("int64", "uint64"):
            if not str(value).isdigit():
                yield f"{at}: not a number"
        elif not isinstance(value, str):
            yield f"{at}: not a string"
        elif "enum" in schema and value not in schema["enum"]:
            yield f"{at}: {value!r} is not one of {schema['enum']}"
