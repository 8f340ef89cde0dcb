"""Slides from a bucket, run folder in a bucket, against a real S3 server on loopback."""

import json

import pytest
from moto.server import ThreadedMotoServer

from csat.data import storage
from csat.export import load_exported
from csat.training.checkpoints import Checkpoints
from tests.workflows.conftest import arguments

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket; the environment that reaches it is the standard one."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "not-so-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    import boto3

    boto3.client("s3").create_bucket(Bucket="csat")
    yield "s3://csat", environment
    server.stop()


def test_slides_and_run_folder_in_a_bucket(bucket, slides, tmp_path, run_alone):
    uri, environment = bucket
    for slide in slides:
        storage.write_bytes(storage.join(uri, "slides", slide.name), slide.read_bytes())
    folder, log = storage.join(uri, "runs", "a"), tmp_path / "log"
    argv = arguments(
        [f"{uri}/slides/*.svs"], folder, readers__cache_folder=tmp_path / "cache", train__checkpoint_every_steps=4
    )
    assert run_alone(argv, log, **environment).wait(timeout=600) == 0, log.read_text()[-3000:]

    accounts = json.loads(storage.read_bytes(storage.join(folder, "accounting.json")))
    assert accounts["epochs"][0]["trained"] == accounts["epochs"][0]["manifest"] > 50
    assert len(Checkpoints(storage.join(folder, "checkpoints")).latest_cursor().done) == accounts["epochs"][0]["manifest"]
    assert {spec.name for spec in load_exported(storage.join(folder, "exported")).responses} == {"np", "hv"}
    assert b"data:image/png" in storage.read_bytes(storage.join(folder, "report.html"))
    assert storage.read_bytes(storage.join(folder, "metrics.jsonl")).count(b"\n") > 2
    assert any("events" in name for name in storage.list_dir(storage.join(folder, "tensorboard")))
    cached = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.svs"))
    assert cached == sum(slide.stat().st_size for slide in slides), "each slide was downloaded once"
    assert "test" not in storage.read_bytes(storage.join(folder, "config.yaml")).decode().split(), (
        "no credentials in the config"
    )

    again = run_alone(argv, log, **environment)
    assert again.wait(timeout=120) == 0
    assert "nothing to do" in log.read_text()
