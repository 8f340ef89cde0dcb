"""The AWS policies: narrow, and enough for what Ray's autoscaler and the project's storage really ask for."""

import base64
import fnmatch
import json
import re
import urllib.parse
import urllib.request

import pytest
import yaml

from csat.storage import files
from tests.cluster.files import filled, load

POLICIES = ("iam/head.json", "iam/worker.json")


def statements(name: str, **values: str) -> list[dict]:
    policy = json.loads(filled(name, **values))
    assert policy["Version"] == "2012-10-17"
    return policy["Statement"]


def listed(value) -> list:
    return value if isinstance(value, list) else [value]


def allowed(policy: list[dict], action: str, resource: str, **context: str) -> bool:
    """Whether some statement allows an action on a resource; context is what conditions look at."""

    def holds(conditions: dict) -> bool:
        return all(
            context.get(key) is not None and any(fnmatch.fnmatchcase(context[key], pattern) for pattern in listed(patterns))
            for wanted in conditions.values()
            for key, patterns in wanted.items()
        )

    return any(
        action in listed(statement["Action"])
        and any(fnmatch.fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
        and holds(statement.get("Condition", {}))
        for statement in policy
    )


@pytest.mark.parametrize("name", POLICIES)
def test_no_action_is_open_and_no_resource_wider_than_it_must_be(name):
    names = [statement["Sid"] for statement in statements(name)]
    assert len(names) == len(set(names))
    for statement in statements(name):
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in listed(statement["Action"]))
        if statement["Resource"] == "*":  # these two cannot be narrowed
            assert set(listed(statement["Action"])) <= {"ec2:DescribeInstances", "ecr:GetAuthorizationToken"}
        assert set(statement.get("Condition", {})) <= {"StringEquals", "StringLike"}


def test_only_instances_may_have_the_roles():
    (trust,) = statements("iam/trust.json")
    assert trust["Principal"] == {"Service": "ec2.amazonaws.com"} and trust["Action"] == "sts:AssumeRole"


def test_the_head_may_touch_its_own_cluster_only():
    policy = statements("iam/head.json")
    instance = "arn:aws:ec2:eu-central-1:123456789012:instance/i-1"
    for action in ("ec2:TerminateInstances", "ec2:CreateTags"):
        assert allowed(policy, action, instance, **{"ec2:ResourceTag/ray-cluster-name": "csat"})
        assert not allowed(policy, action, instance, **{"ec2:ResourceTag/ray-cluster-name": "another"})
        assert not allowed(policy, action, instance)
    launch = {"aws:RequestTag/ray-cluster-name": "csat", "ec2:InstanceType": "g6.xlarge"}
    assert allowed(policy, "ec2:RunInstances", instance, **launch)
    assert not allowed(policy, "ec2:RunInstances", instance, **{**launch, "ec2:InstanceType": "p5.48xlarge"})
    assert not allowed(policy, "ec2:RunInstances", instance, **{"ec2:InstanceType": "g6.xlarge"})
    roles = "arn:aws:iam::123456789012:role/"
    passed = {"iam:PassedToService": "ec2.amazonaws.com"}
    assert allowed(policy, "iam:PassRole", roles + "csat-worker", **passed)
    assert not allowed(policy, "iam:PassRole", roles + "csat-head", **passed)


def test_the_head_may_launch_what_the_groups_are_made_of():
    kinds = load("aws.yaml")["available_node_types"]
    workers = {kind["node_config"]["InstanceType"] for group, kind in kinds.items() if group != "head"}
    (launch,) = [part for part in statements("iam/head.json") if part["Sid"] == "LaunchInstancesOfThisCluster"]
    assert set(launch["Condition"]["StringEquals"]["ec2:InstanceType"]) == workers


@pytest.fixture
def ec2_calls(s3, monkeypatch, tmp_path):
    """Names of the calls to EC2 that boto3 makes from now on, against a server on loopback with the two roles in it."""
    import boto3
    from ray.autoscaler._private.aws import utils

    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key that it makes into ~/.ssh
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    iam = boto3.client("iam")
    for role in ("csat-head", "csat-worker"):
        iam.create_role(RoleName=role, AssumeRolePolicyDocument=filled("iam/trust.json"))
        iam.create_instance_profile(InstanceProfileName=role)
        iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    calls: list[str] = []
    session = boto3.session.Session()
    session.events.register("before-call.ec2", lambda model, **_: calls.append(model.name))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    for cache in (utils.resource_cache, utils.client_cache):
        cache.cache_clear()
    yield calls
    for cache in (utils.resource_cache, utils.client_cache):
        cache.cache_clear()


def test_rays_autoscaler_launches_tags_and_ends_every_group_with_no_other_call(ec2_calls):
    import boto3
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    ec2 = boto3.resource("ec2")
    (network,) = ec2.vpcs.filter(Filters=[{"Name": "is-default", "Values": ["true"]}])
    group = network.create_security_group(GroupName="csat", Description="csat")
    image = next(iter(ec2.images.all())).id
    config = yaml.safe_load(filled("aws.yaml", SECURITY_GROUP_ID=group.id, AMI_ID=image))
    # `ray up` on the laptop: it finds a subnet, makes a key, and leaves the security group as it is.
    config = AWSNodeProvider.bootstrap_config(prepare_config(config))
    assert "AuthorizeSecurityGroupIngress" not in ec2_calls, "Ray would let the whole world ssh in"
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    head_node = config.pop("head_node")  # Ray's own note of a role; ours says it
    assert head_node == {}
    validate_config(config)
    assert config["available_node_types"]["teachers"]["resources"]["CPU"] == 3, "Ray must not count the fourth CPU"

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    ec2_calls.clear()  # from here on it is the head that calls
    for name, kind in config["available_node_types"].items():
        tags = {"ray-node-type": "worker", "ray-user-node-type": name, "ray-node-name": f"ray-csat-{name}"}
        (node,) = provider.create_node(kind["node_config"], tags, 1)
        assert provider.non_terminated_nodes({"ray-user-node-type": name}) == [node]
        provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
        instance = ec2.Instance(node)
        assert (instance.instance_lifecycle == "spot") == (name != "head")
        assert {"Key": "ray-cluster-name", "Value": "csat"} in instance.tags
        role = "csat-head" if name == "head" else "csat-worker"
        assert instance.iam_instance_profile["Arn"].endswith(f"instance-profile/{role}")
        provider.terminate_nodes([node])
        assert provider.non_terminated_nodes({"ray-user-node-type": name}) == []
    policy = statements("iam/head.json")
    assert {f"ec2:{call}" for call in ec2_calls} == {
        action for part in policy for action in listed(part["Action"]) if action.startswith("ec2:")
    }


def test_storage_needs_no_more_than_one_prefix(s3, s3_server, monkeypatch, tmp_path):
    """Every request of the project's storage, recorded by the server, is one that worker.json allows."""
    monkeypatch.chdir(tmp_path)  # where the server, a thread of this process, writes its recording
    bucket = s3.removeprefix("s3://")
    folder = files.join(s3, "csat", "runs")

    def recorder(verb: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{s3_server}/moto-api/recorder/{verb}", data=data)
        return urllib.request.urlopen(request, timeout=100).read()

    recorder("reset-recording", b"")
    recorder("start-recording", b"")
    try:
        files.check_writable(folder)
        files.write_bytes(files.join(folder, "a.bin"), b"abcdef")
        with files.open_output(files.join(folder, "deep/b.bin")) as file:
            file.write(b"x" * 1000)
        assert files.read_bytes(files.join(folder, "a.bin"), start=1, stop=3) == b"bc"
        with files.open_input(files.join(folder, "deep/b.bin")) as file:
            assert len(file.read()) == 1000
        assert files.info(files.join(folder, "nothing")) is None
        assert files.is_dir(folder) and len(files.list_files(folder)) == 2
        assert len(files.list_dir(folder)) == 2 and len(files.list_info(folder)) == 2
        assert len(files.glob(files.join(folder, "*.bin"))) == 1
        filesystem, path = files.arrow_filesystem(files.join(folder, "c.bin"))
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"arrow")
        with filesystem.open_input_file(path) as stream:
            assert stream.read() == b"arrow"
        files.delete(folder)
    finally:
        recorder("stop-recording", b"")
    lines = recorder("download-recording").decode().splitlines()
    recorder("reset-recording", b"")
    policy = statements("iam/worker.json", BUCKET=bucket)
    asked = {access for line in lines for access in accesses_of(json.loads(line), bucket)}
    refused = [
        (action, resource, prefix)
        for action, resource, prefix in asked
        if not allowed(policy, action, resource, **({"s3:prefix": prefix} if prefix is not None else {}))
    ]
    assert refused == []
    assert {action for action, _, _ in asked} >= {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"}


def accesses_of(request: dict, bucket: str) -> list[tuple[str, str, str | None]]:
    """(action, resource, prefix of a listing) that an S3 request needs."""
    url = urllib.parse.urlsplit(request["url"])
    path, query = urllib.parse.unquote(url.path).strip("/"), urllib.parse.parse_qs(url.query, keep_blank_values=True)
    assert path.startswith(bucket)
    key, resource = path.removeprefix(bucket).strip("/"), f"arn:aws:s3:::{bucket}"
    if not key and "delete" in query:  # many objects at once: named in the body
        body = base64.b64decode(request["body"]) if request["body_encoded"] else request["body"].encode()
        keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
        assert keys
        return [("s3:DeleteObject", f"{resource}/{name}", None) for name in keys]
    if not key:
        return [("s3:ListBucket", resource, query.get("prefix", [None])[0])]
    action = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "POST": "PutObject", "DELETE": "DeleteObject"}
    return [(f"s3:{action[request['method']]}", f"{resource}/{key}", None)]
