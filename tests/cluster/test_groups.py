"""The groups of every cluster hold the recipe that they are sized for, and say what they can grow to."""

import pytest
import yaml

from csat.errors import ConfigError
from tests.cluster.files import AUTOSCALER_FILES, KUBERAY_FILES, ROOT, groups, limits
from workflows.shell import resources
from workflows.shell.config import PoolConfig, RayConfig, ReaderConfig, WorkerConfig

RECIPE = yaml.safe_load((ROOT / "workflows/recipes/rckd.yaml").read_text())
READERS, POOL = ReaderConfig(**RECIPE["readers"]), PoolConfig(**RECIPE["pool"])
WORKERS, RAY = WorkerConfig(**RECIPE["workers"]), RayConfig(**RECIPE["ray"])
SLOT_BYTES = 300_000_000  # 128 tiles of 512 px, and their responses

every_cluster = pytest.mark.parametrize("name", [*AUTOSCALER_FILES, *KUBERAY_FILES])


@every_cluster
def test_the_limits_are_the_sums_of_the_groups(name):
    found = groups(name).values()
    said = dict(entry.split("=") for entry in limits(name).split(","))
    assert {key: float(value) for key, value in said.items()} == {
        "CPU": sum(group.max_nodes * group.cpus for group in found),
        "GPU": sum(group.max_nodes * group.gpus for group in found),
        "object_store_memory": sum(group.max_nodes * group.store_bytes for group in found),
    }


@every_cluster
def test_the_recipe_starts_with_only_the_head_there(name, monkeypatch):
    head = groups(name)["head"]
    # No cloud here: what Ray would say of a cluster whose groups are all empty.
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"object_store_memory": float(head.store_bytes)})
    monkeypatch.setattr(resources.ray, "nodes", lambda: [{"Alive": True, "Resources": {}}])
    wanted = dict(readers=READERS, pools={"pool": POOL}, workers=WORKERS, ray_config=RAY, slot_bytes=SLOT_BYTES)
    monkeypatch.setenv("CSAT_CLUSTER_LIMITS", limits(name))
    resources.check_resources(**wanted)
    resources.check_workers(WORKERS, pool=POOL, readers=READERS)
    monkeypatch.delenv("CSAT_CLUSTER_LIMITS")
    with pytest.raises(ConfigError, match="the cluster has 0"):
        resources.check_resources(**wanted)


def test_the_teachers_of_a_fine_tuning_are_counted(monkeypatch):
    workers, pool, readers = WorkerConfig(num_workers=2, cpus_per_worker=1), PoolConfig(cpus_per_actor=1), ReaderConfig()
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 2.0})
    resources.check_workers(workers, readers=readers)
    with pytest.raises(
        ConfigError, match=r"2 workers x cpus 1 \+ 1 teacher actors x 1 .* the cluster has 2: .*pool.min_actors"
    ):
        resources.check_workers(workers, pool=pool, readers=readers)


@every_cluster
def test_the_whole_recipe_fits_into_its_groups(name):
    found = groups(name)
    trainers, teachers, readers = found["trainers"], found["teachers"], found["readers"]
    on_one = min(trainers.cpus // WORKERS.cpus_per_worker, trainers.gpus // WORKERS.gpus_per_worker)
    assert trainers.max_nodes * on_one >= WORKERS.num_workers
    on_one = min(teachers.cpus // POOL.cpus_per_actor, teachers.gpus // POOL.gpus_per_actor)
    assert teachers.max_nodes * on_one >= POOL.max_actors
    assert readers.max_nodes * (readers.cpus // READERS.cpus_per_actor) >= READERS.max_actors
    assert RAY.stream_gb * 1e9 < sum(group.max_nodes * group.store_bytes for group in found.values())


@every_cluster
def test_no_group_takes_what_another_is_for(name):
    found = groups(name)
    assert set(found) == {"head", "readers", "teachers", "trainers"}
    assert found["head"].cpus == found["head"].gpus == 0, "work on the head would be lost with it"
    assert found["readers"].gpus == 0
    assert found["teachers"].cpus < WORKERS.cpus_per_worker, "a trainer could take a teacher's GPU"


def test_every_cluster_has_the_same_groups():
    assert (
        len(
            {
                tuple((name, group.max_nodes, group.gpus) for name, group in groups(file).items())
                for file in AUTOSCALER_FILES + KUBERAY_FILES
            }
        )
        == 1
    )
