"""What is refused before a tile is read: other weights, a cluster that is too small."""

from dataclasses import replace

import pytest

from csat.errors import ConfigError
from csat.runs.folder import RunFolder
from workflows.prediction.check import check_resources, check_same_model, with_precision
from workflows.prediction.config import AnswersConfig, NetworkConfig, PredictConfig
from workflows.prediction.job import make_job
from workflows.prediction.model import describe
from workflows.shell.config import RayConfig

STAIN = PredictConfig(model=AnswersConfig(name="stain"), slides=["a.svs"], output="out")


@pytest.fixture(scope="module")
def model():
    return describe(STAIN)


def test_a_prediction_resumes_with_the_weights_that_it_began_with(tmp_path, model):
    folder = RunFolder(str(tmp_path), setting="output")
    check_same_model(folder, model)
    folder.set_status("running")
    check_same_model(folder, model)
    other = replace(model, about={**model.about, "sha256": "f" * 64})
    with pytest.raises(ConfigError, match="other weights of stain.*they are now ffffffffffff. Choose another output"):
        check_same_model(folder, other)
    assert folder.read_json("model.json")["sha256"] == model.about["sha256"]


def test_the_best_precision_is_what_all_nodes_can_and_stays_that(tmp_path, monkeypatch, model):
    lacking = []
    monkeypatch.setattr("workflows.shell.cluster.without_bfloat16", lambda device: lacking if device == "cpu" else ["a node"])
    best = replace(STAIN, model=replace(STAIN.model, precision="best"))

    def used(config, output):
        folder = RunFolder(str(tmp_path / output), setting="output")
        check_same_model(folder, model)
        precision = with_precision(make_job(config, model), folder).config.model.precision
        assert folder.read_json("model.json")["precision"] == precision
        return precision

    assert used(replace(best, network=NetworkConfig(gpus_per_actor=1.0)), "gpu") == "float32"
    assert used(best, "cpu") == "bfloat16"
    lacking.append("another node")
    assert used(best, "cpu") == "bfloat16", "files would be of both kinds"
    assert used(best, "other") == used(STAIN, "stain") == "float32"


def test_no_other_precision_is_taken():
    with pytest.raises(ConfigError, match="model.precision is best, float32 or bfloat16, not 'half'"):
        AnswersConfig(name="stain", precision="half")


@pytest.mark.parametrize(
    ("changes", "cluster", "words"),
    [
        ({}, {"CPU": 1.0}, r"needs 1.5 CPUs \(1 readers x 0.25 \+ 1 network x 0.5 .* assembly.max_slides 2 x 0.25\) .* has 1"),
        ({"network": NetworkConfig(gpus_per_actor=1.0)}, {"CPU": 8.0}, r"1 GPUs \(1 network x 1\) and the cluster has 0"),
        (
            {"network": NetworkConfig(cpus_per_actor=3.0)},
            {"CPU": 8.0},
            "more CPUs than the largest node has .2.: lower .*network.cpus_per_actor",
        ),
        ({"ray": RayConfig(stream_gb=0.01)}, {"CPU": 8.0}, "stream_gb 0.01 is too little .* set ray.stream_gb 0.2"),
        ({}, {"CPU": 8.0, "object_store_memory": 1e8}, "more than the cluster.s object store holds"),
    ],
)
def test_what_the_cluster_cannot_hold_is_refused_with_the_sums(monkeypatch, model, changes, cluster, words):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"object_store_memory": 1e9, **cluster})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    with pytest.raises(ConfigError, match=words):
        check_resources(make_job(replace(STAIN, **changes), model))


def test_what_it_can_hold_is_not(monkeypatch, model):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"object_store_memory": 1e9, "CPU": 2.0})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    check_resources(make_job(STAIN, model))
