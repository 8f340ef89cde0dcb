"""The picture at the end of a demonstration, and that no other run has one."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csat.model.files import save_model
from csat.runs.folder import RunFolder
from csat.slides.synthetic import make_slides
from tests.csat.export.models import LABEL, METADATA, NUCLEI, student
from workflows.pretraining.config import DemoConfig, PretrainConfig
from workflows.pretraining.demo_picture import draw_demo
from workflows.shell.config import TeacherConfig

SIZE_PX = 256


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a demonstration as it is when all is done but the picture: its settings, and what was held out."""
    folder = tmp_path_factory.mktemp("demo")
    (slide,) = make_slides(folder / "slides", num_slides=1, size_px=SIZE_PX)
    save_model(student(NUCLEI), str(folder / "run" / "exported"), METADATA)
    save_model(student(LABEL), str(folder / "classes" / "exported"), METADATA)
    (folder / "holdout").mkdir()
    pq.write_table(pa.table({"slide": [str(slide)] * 3}), folder / "holdout" / "part-0.parquet")
    demo = DemoConfig(num_slides=1, size_px=SIZE_PX)
    config = PretrainConfig(run_folder="run", slides=["demo"], teacher=TeacherConfig(name="stain"), demo=demo)
    return folder, config, SimpleNamespace(uri=str(folder / "holdout"), shards=("part-0.parquet",), num_tiles=3)


def test_it_shows_the_slide(finished):
    folder, config, holdout = finished
    draw_demo(RunFolder(str(folder / "run")), config, holdout)
    with Image.open(folder / "run" / "nuclei.png") as picture:
        assert picture.size == (SIZE_PX, SIZE_PX)
        drawn = np.asarray(picture).astype(int)
    with Image.open(next((folder / "slides").glob("*.svs"))) as slide:
        pixels = np.asarray(slide.convert("RGB")).astype(int)
    assert np.median(abs(drawn - pixels)) == 0, "red is red"


@pytest.mark.parametrize(
    ("run", "changes"), [("run", {"slides": ["a.svs"]}), ("run", {"students": {"a": "csat_nano"}}), ("classes", {})]
)
def test_other_runs_have_none(finished, run, changes):
    folder, config, holdout = finished
    (folder / run / "nuclei.png").unlink(missing_ok=True)
    draw_demo(RunFolder(str(folder / run)), replace(config, **changes), holdout)
    draw_demo(RunFolder(str(folder / run)), config, None)
    assert not (folder / run / "nuclei.png").exists()
