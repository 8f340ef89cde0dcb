"""`plan true` measures, says what the run would take and stops; the run that follows uses it, and is compared with it.

It also says whether it is cheaper to keep the teacher's responses, and the run does what it said.
"""

import json

import pytest
import yaml

from tests.support.verbs import arguments
from workflows import pretrain
from workflows.pretraining.plan import RAY_CPUS, machines


@pytest.mark.ray
def test_what_a_cluster_has(ray_cluster):
    """One node of four CPUs, of which Ray's own processes keep some busy."""
    have = machines()
    assert (have.cpus, have.node_cpus, have.gpus, have.taken_cpus) == (4, 4, 0, RAY_CPUS)
    assert have.memory_bytes > have.store_bytes > 0


@pytest.mark.ray
@pytest.mark.thorough
def test_a_plan_and_the_run_that_follows(ray_cluster, slides, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "run"
    settings = {"readers__max_actors": None, "train__log_every_steps": 1, "train__epochs": 2, "cache__uri": tmp_path / "cache"}
    assert pretrain.main(arguments(slides, folder, **settings, plan="true")) == 0
    said = capsys.readouterr().out
    record = json.loads((folder / "plan.json").read_text())
    assert "the plan (" in said and "(--pool.max_actors)" in said and f"limited by {record['plan']['bottleneck']}" in said
    assert not (folder / "status.json").exists() and not (folder / "checkpoints").exists()
    assert record["plan"]["cpus"] <= 4
    keeping = json.loads((folder / "keeping.json").read_text())
    assert ("responses are kept in" if keeping["is_kept"] else "responses are not kept: to answer") in said
    assert keeping["teachers"]["teacher"]["answer_s"] > 0 and not list((tmp_path / "cache").glob("*")), "the trial is gone"

    assert pretrain.main(arguments(slides, folder, **settings)) == 0
    assert json.loads((folder / "plan.json").read_text())["calibration"] == record["calibration"], "nothing is measured again"
    assert json.loads((folder / "keeping.json").read_text()) == keeping
    assert keeping["is_kept"] == bool(list((tmp_path / "cache").glob("*/complete.json")))
    used = yaml.safe_load((folder / "config.yaml").read_text())
    assert used["pool"]["max_actors"] >= 1 and used["pool"]["threads"] >= 1 and used["workers"]["threads"] >= 1
    compared = json.loads((folder / "throughput.json").read_text())["predicted"]
    assert compared["tiles_per_s"] > 0 and compared["ratio"] == pytest.approx(
        compared["measured_tiles_per_s"] / compared["tiles_per_s"]
    )
    assert "the plan said" in caplog.text
