"""Slides from a bucket, run folder in a bucket, against a real S3 server on loopback."""

import json

import pytest

from csat.export.folder import load_exported
from csat.runs.checkpoints import Checkpoints
from csat.storage import files
from tests.support.verbs import arguments

pytestmark = [pytest.mark.ray, pytest.mark.thorough]


def test_slides_and_run_folder_in_a_bucket(s3, slides, tmp_path, run_alone):
    uri = s3  # reached through the environment, which the run inherits
    for slide in slides:
        files.write_bytes(files.join(uri, "slides", slide.name), slide.read_bytes())
    folder, log = files.join(uri, "my runs", "a b"), tmp_path / "log"
    argv = arguments(
        [f"{uri}/slides/*.svs"], folder, readers__cache_folder=tmp_path / "cache", train__checkpoint_every_steps=4
    )
    assert run_alone(argv, log).wait(timeout=600) == 0, log.read_text()[-3000:]

    accounts = json.loads(files.read_bytes(files.join(folder, "accounting.json")))
    assert accounts["epochs"][0]["trained"] == accounts["epochs"][0]["manifest"] > 50
    assert len(Checkpoints(files.join(folder, "checkpoints")).latest_cursor().done) == accounts["epochs"][0]["manifest"]
    assert {spec.name for spec in load_exported(files.join(folder, "exported")).responses} == {"np", "hv"}
    assert b"data:image/png" in files.read_bytes(files.join(folder, "report.html"))
    assert files.read_bytes(files.join(folder, "metrics.jsonl")).count(b"\n") > 2
    assert any("events" in name for name in files.list_dir(files.join(folder, "tensorboard")))
    cached = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.svs"))
    assert cached == sum(slide.stat().st_size for slide in slides), "each slide was downloaded once"
    assert "test" not in files.read_bytes(files.join(folder, "config.yaml")).decode().split(), "no credentials in the config"

    again = run_alone(argv, log)
    assert again.wait(timeout=120) == 0
    assert "nothing to do" in log.read_text()
