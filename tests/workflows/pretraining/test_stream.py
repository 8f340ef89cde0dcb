"""Who has GPUs in a stream. What a response cache does with them, and that its pool ends, is in test_s3.py."""

from dataclasses import replace

import pytest

from csat.responses import Kind, ResponseSpec, Symmetry
from csat.runs.plan import Plan
from teachers.response_cache import ResponseCache
from workflows.pretraining.stream import ResumingStream, StreamConfig, StreamTeacher
from workflows.shell.config import PoolConfig, RayConfig, ReaderConfig, TeacherConfig
from workflows.shell.data import CACHED, TRAIN

RESPONSES = (ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),)


def stages_of(stream) -> list:
    """The logical operators of a stream that have actors, the reader's first."""
    found, operator = [], stream._logical_plan.dag
    while operator.input_dependencies:
        found.insert(0, operator)
        (operator,) = operator.input_dependencies
    return found


@pytest.mark.ray
def test_later_epochs_have_no_gpu_for_what_is_kept(ray_cluster, tmp_path):
    """Nor has the first one where everything is kept already."""
    cache = ResponseCache(str(tmp_path / "cache"), {}, RESPONSES)
    pool, asked = PoolConfig(gpus_per_actor=0.5), TeacherConfig(name="stain")
    teacher = StreamTeacher(name=None, teacher=asked, sha256="", responses=RESPONSES, pool=pool, cache=cache)
    plan = Plan([16], [0], num_epochs=3, seed=0)
    manifest, checkpoints = str(tmp_path / "manifest"), str(tmp_path / "checkpoints")
    config = StreamConfig(manifest_uri=manifest, plan=plan, tile_px=64, readers=ReaderConfig(), teachers=(teacher,))

    def gpus(config: StreamConfig, part: str) -> float:
        stream = ResumingStream(config=config, checkpoints_uri=checkpoints, settings=RayConfig(), part=part)()
        return stages_of(stream)[-1].ray_remote_args.get("num_gpus") or 0

    assert (gpus(config, TRAIN), gpus(config, CACHED)) == (0.5, 0)
    assert gpus(config.without_cache(), TRAIN) == 0.5
    cache.mark_complete()
    assert (gpus(config, TRAIN), gpus(config, CACHED)) == (0, 0)


@pytest.mark.ray
def test_a_teacher_whose_responses_cannot_be_kept_has_its_pool_in_every_epoch(ray_cluster, tmp_path):
    """It comes after the others, and its batches leave when they are answered."""
    pool, asked = PoolConfig(gpus_per_actor=0.5, batch_size=4), TeacherConfig(name="stain")
    features = ResponseSpec(name="features.embedding", kind=Kind.FEATURES, channels=8, stride_px=None, symmetry=Symmetry.NONE)
    asks = {"features": (features,), "nuclei": tuple(replace(spec, name="nuclei.np") for spec in RESPONSES)}
    teachers = tuple(
        StreamTeacher(name=name, teacher=asked, sha256="", responses=responses, pool=pool) for name, responses in asks.items()
    )
    plan, manifest = Plan([16], [0], num_epochs=3, seed=0), str(tmp_path / "manifest")
    config = StreamConfig(manifest_uri=manifest, plan=plan, tile_px=64, readers=ReaderConfig(), teachers=teachers, view_seed=1)
    config = config.with_caches({"nuclei": ResponseCache(str(tmp_path / "cache"), {}, RESPONSES)})

    def stages(part: str) -> list[tuple]:
        stream = ResumingStream(
            config=config, checkpoints_uri=str(tmp_path / "checkpoints"), settings=RayConfig(), part=part
        )()
        assert stream.context.target_max_block_size == int(0.9 * 4 * config.bytes_per_tile())
        return [(stage.fn.__name__, stage.ray_remote_args.get("num_gpus") or 0) for stage in stages_of(stream)[1:]]

    assert stages(TRAIN) == [("CachedTeacherStage_nuclei", 0.5), ("TeacherStage_features", 0.5)]
    assert stages(CACHED) == [("CachedTeacherStage_nuclei", 0), ("TeacherStage_features", 0.5)]


@pytest.mark.ray
def test_each_of_several_teachers_has_what_its_own_pool_asks_for(ray_cluster, tmp_path):
    """GPUs, CPUs, actors and batch size; who has a GPU computes there, the others and the reader have none."""
    pools = {
        "nuclei": PoolConfig(gpus_per_actor=1, cpus_per_actor=2, min_actors=2, max_actors=3, batch_size=8),
        "stains": PoolConfig(gpus_per_actor=0, cpus_per_actor=0.5, min_actors=1, max_actors=4, batch_size=16),
        "tissue": PoolConfig(gpus_per_actor=0.25, cpus_per_actor=0.25, min_actors=1, max_actors=1, batch_size=64),
    }
    asked = TeacherConfig(name="stain")
    teachers = tuple(
        StreamTeacher(name=name, teacher=asked, sha256="", responses=RESPONSES, pool=pool) for name, pool in pools.items()
    )
    plan, manifest = Plan([16], [0], num_epochs=1, seed=0), str(tmp_path / "manifest")
    config = StreamConfig(manifest_uri=manifest, plan=plan, tile_px=64, readers=ReaderConfig(), teachers=teachers)
    stream = ResumingStream(config=config, checkpoints_uri=str(tmp_path / "checkpoints"), settings=RayConfig())()
    reader, *stages = stages_of(stream)
    assert not reader.ray_remote_args.get("num_gpus")
    for stage, (name, pool) in zip(stages, pools.items(), strict=True):
        assert stage.fn.__name__ == f"TeacherStage_{name}" and stage.batch_size == pool.batch_size
        assert (stage.ray_remote_args.get("num_gpus") or 0) == pool.gpus_per_actor
        assert stage.ray_remote_args["num_cpus"] == pool.cpus_per_actor
        assert (stage.compute.min_size, stage.compute.max_size) == (pool.min_actors, pool.max_actors)
        assert stage.fn_constructor_kwargs["device"] == ("cuda" if pool.gpus_per_actor else "cpu")
