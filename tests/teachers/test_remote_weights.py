"""A teacher's weights in a bucket, against a real S3 server on loopback."""

import pytest
import torch

from csat.errors import TeacherError
from csat.model.networks.hovernet import HoVerNet
from csat.storage import files
from teachers.contract import sha256_of
from teachers.registry import describe_teacher

OPTIONS = {"mode": "fast", "width": 0.0625}


def test_weights_are_read_from_a_bucket_with_the_hash_of_the_file(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where downloads are kept
    torch.save({"desc": HoVerNet(mode="fast", num_types=6, width=0.0625).state_dict()}, tmp_path / "own.tar")
    files.write_bytes(f"{s3}/weights/own.tar", (tmp_path / "own.tar").read_bytes())
    spec = describe_teacher("hovernet", f"{s3}/weights/own.tar", OPTIONS)
    assert spec.weights_sha256 == sha256_of(tmp_path / "own.tar")
    assert {response.name for response in spec.responses} == {"np", "hv", "tp"}


def test_weights_that_are_not_in_the_bucket_are_named(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(TeacherError, match="absent.tar.*teacher.weights"):
        describe_teacher("hovernet", f"{s3}/weights/absent.tar", OPTIONS)
