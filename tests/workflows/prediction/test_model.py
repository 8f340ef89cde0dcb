"""How a model is shown slides: at its own resolution, in tiles that overlap as its task needs it."""

import pytest

from csat.errors import ConfigError
from workflows.prediction.config import AnswersConfig, PredictConfig, SeenConfig
from workflows.prediction.job import make_job
from workflows.prediction.model import describe


def config(**data):
    return PredictConfig(model=AnswersConfig(name="stain"), slides=["a.svs"], output="out", data=SeenConfig(**data))


@pytest.mark.parametrize(("mpp", "overlap_px"), [(0.5, 40), (0.25, 80), (0.2325, 87)])
def test_nuclei_overlap_by_20_um_at_any_resolution(mpp, overlap_px):
    job = make_job(config(mpp=mpp), describe(config(mpp=mpp)))
    assert (job.tiling.overlap_px, job.tiling.mpp, job.tiling.tile_px) == (overlap_px, mpp, 256)
    assert job.tiling.cover_edges and job.nuclei_maps == ("np", "hv") and job.maps == () == job.vectors


def test_tiles_that_are_too_small_for_a_nucleus_are_refused():
    with pytest.raises(ConfigError, match="have to overlap by 80 px.*set a larger data.tile_px"):
        describe(config(mpp=0.25, tile_px=64))


def test_a_model_of_nuclei_without_a_resolution_asks_for_it(monkeypatch):
    from teachers.registry import TEACHERS

    monkeypatch.setitem(TEACHERS, "fake", ("tests.support.fakes:FakeOptions", "tests.support.fakes:load"))
    fake = PredictConfig(model=AnswersConfig(name="fake"), slides=["a.svs"], output="out")
    with pytest.raises(ConfigError, match="nuclei have a size: set data.mpp"):
        describe(fake)
