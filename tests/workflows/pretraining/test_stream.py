"""Who has GPUs in a stream with a response cache. What it does with them, and that its pool ends, is in test_s3.py."""

import pytest

from csat.responses import Kind, ResponseSpec
from csat.runs.plan import Plan
from teachers.response_cache import ResponseCache
from workflows.pretraining.stream import ResumingStream, StreamConfig, StreamTeacher
from workflows.shell.config import PoolConfig, RayConfig, ReaderConfig, TeacherConfig
from workflows.shell.data import CACHED, TRAIN

RESPONSES = (ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),)


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
        return stream._logical_plan.dag.ray_remote_args.get("num_gpus") or 0

    assert (gpus(config, TRAIN), gpus(config, CACHED)) == (0.5, 0)
    assert gpus(config.without_cache(), TRAIN) == 0.5
    cache.mark_complete()
    assert (gpus(config, TRAIN), gpus(config, CACHED)) == (0, 0)
