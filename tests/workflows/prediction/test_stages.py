"""From slides to files, stage after stage in this process: every tile is accounted for, whatever breaks.

And nothing depends on the batches that tiles come in.
"""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from csat.columns import FILTERED, STATUS, TILE
from csat.model.files import save_model
from csat.model.registry import ModelConfig, build_model
from csat.prediction import nuclei
from csat.runs.folder import RunFolder
from csat.slides.reader import open_slide
from csat.slides.synthetic import make_slides, read_truth
from csat.tasks import DatasetInfo, Task
from teachers.registry import TEACHERS
from tests.support.fakes import RAISES
from tests.workflows.prediction.in_process import answer, make, predict
from workflows.prediction.config import AnswersConfig, NetworkConfig, SeenConfig
from workflows.prediction.finish import finish
from workflows.prediction.slide_files import write_slide_files

STAIN = AnswersConfig(name="stain")
SMALL = SeenConfig(tile_px=128, min_tissue=0.0)
EVERYTHING = ["nuclei", "cells", "nuclei-centroids", "heatmap"]  # that the stain teacher can give


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A slide with known nuclei, whose edges are no whole number of tiles."""
    return make_slides(tmp_path_factory.mktemp("slides"), num_slides=1, size_px=600, seed=3)[0]


@pytest.fixture(scope="module")
def predicted(painted, tmp_path_factory):
    """Job and record of that slide, with all files of nuclei."""
    job = make(tmp_path_factory.mktemp("out"), [painted], STAIN, data=SMALL, write=EVERYTHING, show=2)
    return job, predict(job)[0]


@pytest.fixture
def fake(monkeypatch):
    """A teacher that fails on chosen tiles, by name."""
    monkeypatch.setitem(TEACHERS, "fake", ("tests.support.fakes:FakeOptions", "tests.support.fakes:load"))
    return AnswersConfig(name="fake")


def contents(job):
    """File → bytes, of all slides."""
    folder = RunFolder(job.config.output).path("slides")
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_the_whole_slide_is_covered_and_its_nuclei_are_found(predicted, painted):
    job, record = predicted
    assert record["tiles"] == record["predicted"] == job.manifest.num_tiles and not record["reasons"]
    assert record["summary"]["seen_mm2"] == pytest.approx((600 * 0.5e-3) ** 2), "up to the right and lower edge"
    (folder,) = {name.split("/")[0] for name in contents(job)}
    assert set(contents(job)) == {f"{folder}/{file}" for file in job.files} and len(job.files) == 6
    nuclei = pq.read_table(f"{job.layout.slide_folder(folder)}/nuclei.parquet").to_pandas()
    assert len(nuclei) == record["summary"]["nuclei"] and nuclei["id"].is_unique
    truth = read_truth(painted, 0, 0, 600)
    hit = truth[nuclei["y_px"].astype(int), nuclei["x_px"].astype(int)]
    known = len(np.unique(truth)) - 1
    assert (hit > 0).mean() > 0.75 and 0.6 * known < len(np.unique(hit[hit > 0])) <= known
    assert 1 <= len(record["fields"]) <= 40
    assert job.layout.done() == {0} and job.layout.parts.done() == {}
    assert write_slide_files(job, 0) == record, "what is done is not done again"


def test_a_rerun_in_other_batches_from_where_it_was_killed_gives_the_same_bytes(predicted, painted, tmp_path):
    job, record = predicted
    again = make(tmp_path, [painted], STAIN, data=SMALL, write=EVERYTHING, show=2, network=NetworkConfig(batch_size=5))
    answer(again)
    parts = sorted((tmp_path / "parts").rglob("*.arrow"))
    for part in parts[1::2]:  # half of what was said is lost
        part.unlink()
    done = again.layout.parts.done()[0]
    assert 0 < len(done) < again.manifest.num_tiles
    rows = answer(again, done)
    assert sum(row["stop"] - row["first"] for row in rows) == again.manifest.num_tiles - len(done), "nothing is answered twice"
    write_slide_files(again, 0)
    assert contents(again) == contents(job)


def test_tables_of_tiles_are_the_same_bytes_whatever_batches_they_came_in(fake, painted, tmp_path):
    written = []
    for batch_size in (3, 32):
        data, network = SeenConfig(tile_px=64, mpp=0.5, min_tissue=0.0), NetworkConfig(batch_size=batch_size)
        job = make(tmp_path / str(batch_size), [painted], fake, data=data, network=network, write=["embeddings"])
        predict(job)
        written.append(contents(job))
    assert written[0] == written[1] and len(written[0]) == 1


def test_a_tile_that_fails_is_counted_and_costs_no_other(fake, painted, tmp_path):
    """One tile on which the model fails, one of glass that is filtered, one that cannot be read."""
    model = AnswersConfig(name="fake")
    job = make(
        tmp_path, [painted], model, data=SeenConfig(tile_px=128, mpp=0.5, min_tissue=0.0), write=["nuclei", "embeddings"]
    )

    def spoil(columns):
        for row, position in enumerate(columns["position"].tolist()):
            if position == 3:
                columns[TILE][row, 0, 0] = RAISES
            if position == 5:
                columns[STATUS][row], columns["reason"][row] = FILTERED, "background: glass"
            if position == 7:
                columns[STATUS][row], columns["reason"][row] = 1, "unreadable: a torn tile"

    (record,) = predict(job, spoil=spoil)
    assert record["quarantined"] == 2 and record["filtered"] == 1 and record["predicted"] == record["tiles"] - 3
    assert record["reasons"] == {"quarantined: model_error": 1, "filtered: background": 1, "quarantined: unreadable": 1}
    accounts = _finish(job)
    assert accounts["tiles"] == {
        "manifest": record["tiles"],
        "predicted": record["tiles"] - 3,
        "quarantined": 2,
        "filtered": 1,
    }
    rows = pq.read_table(tmp_path / "quarantine.parquet").to_pylist()
    assert [(row["position"], row["status"]) for row in rows] == [(3, "quarantined"), (5, "filtered"), (7, "quarantined")]
    features = pq.read_table(f"{job.layout.slide_folder(record['name'])}/embeddings.parquet")
    assert len(features) == record["predicted"] and len(features["feature"][0]) == 3


def test_maps_of_which_no_nuclei_can_be_made_cost_their_tile_alone(painted, tmp_path, monkeypatch):
    seen, real = [], nuclei.instances_from_hv

    def failing(probability, *args, **kwargs):
        """On the third tile, whenever it comes."""
        seen.append(probability.sum())
        if len(seen) > 2 and seen[-1] == seen[2]:
            raise ValueError("a library\nFloatingPointError: gives up")
        return real(probability, *args, **kwargs)

    monkeypatch.setattr(nuclei, "instances_from_hv", failing)
    job = make(tmp_path, [painted], STAIN, data=SMALL)
    (record,) = predict(job)
    assert record["reasons"] == {"quarantined: model_error": 1} and record["predicted"] == record["tiles"] - 1 > 10
    (row,) = pq.read_table(f"{job.layout.slide_folder(record['name'])}/quarantine.parquet").to_pylist()
    assert row["position"] == 2 and row["message"] == "no nuclei can be made of its maps: FloatingPointError: gives up"


def test_a_model_that_says_nothing_of_its_margin_answers_the_slides_rim(fake, painted, tmp_path):
    """Its outermost tiles reach beyond the slide: map and area are those of a model without a margin."""
    heat, records = [], []
    for crop_px in (0, 24):
        model = AnswersConfig(name="fake", options={"crop_px": crop_px})
        data = SeenConfig(tile_px=128, mpp=0.5, min_tissue=0.0)
        job = make(tmp_path / str(crop_px), [painted], model, data=data, write=["heatmap"])
        records += predict(job)
        heat.append(tifffile.imread(f"{job.layout.slide_folder(records[-1]['name'])}/heatmap.ome.tif"))
    assert [record["predicted"] for record in records] == [record["tiles"] for record in records] and not records[1]["reasons"]
    assert records[1]["summary"]["seen_mm2"] == pytest.approx((600 * 0.5e-3) ** 2)
    assert np.abs(heat[1].astype(int) - heat[0]).max() <= 1 and heat[1].min() > 0


def test_a_slide_that_went_away_is_quarantined_and_the_others_have_their_files(painted, tmp_path):
    gone = tmp_path / "gone.svs"
    shutil.copy(painted, gone)
    job = make(tmp_path / "out", [painted, gone], STAIN, data=SMALL)
    gone.unlink()
    records = {record["name"]: record for record in predict(job)}
    assert records["gone"]["quarantined"] == records["gone"]["tiles"] > 0 == records["gone"]["predicted"]
    assert records["gone"]["reasons"] == {"quarantined: missing": records["gone"]["tiles"]}
    (other,) = [record for name, record in records.items() if name != "gone"]
    assert other["predicted"] == other["tiles"] and other["summary"]["nuclei"] > 0
    accounts = _finish(job)
    assert accounts["slides"]["done"] == 2 and accounts["tiles"]["quarantined"] == records["gone"]["tiles"]
    assert pq.read_table(tmp_path / "out" / "summary.parquet")["tiles_answered"].to_pylist().count(0) == 1


@pytest.mark.parametrize(
    ("task", "files"),
    [
        (Task.CLASSIFICATION, {"tiles.parquet", "tiles.geojson.gz", "heatmap.ome.tif", "heatmap.png"}),
        (Task.SEGMENTATION, {"mask.ome.tif", "heatmap.ome.tif", "heatmap.png"}),
    ],
)
def test_what_is_written_by_itself_follows_from_the_task(task, files, painted, tmp_path):
    info = DatasetInfo(name="x", task=task, classes=("tumour", "<b>stroma"), mpp=0.5, licence="x", source="y", group="image")
    is_classifier = task is Task.CLASSIFICATION
    options = {} if is_classifier else {"width": 4, "depth": 2}
    model = build_model(ModelConfig(name="csat_nano" if is_classifier else "unet", options=options), info, None)
    save_model(model, str(tmp_path / "model"), {"task": str(task), "mpp": 0.5, "tile_px": 128, "classes": info.classes})
    job = make(tmp_path / "out", [painted], AnswersConfig(name=str(tmp_path / "model")), data=SeenConfig(min_tissue=0), show=1)
    (record,) = predict(job)
    assert set(job.files) == files == {name.split("/")[1] for name in contents(job)}
    summary = record["summary"]
    if task is Task.CLASSIFICATION:
        assert summary["tiles_tumour"] + summary["tiles_<b>stroma"] == record["tiles"] == record["predicted"]
    else:
        assert summary["mm2_tumour"] + summary["mm2_<b>stroma"] == pytest.approx(summary["seen_mm2"], rel=0.02)
    _finish(job)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;stroma" in page
    assert page.count("data:image/jpeg;base64,") == 2, "one typical field and one odd"


def test_rows_of_a_parquet_are_images_of_their_own(painted, tmp_path):
    """Nuclei of two rows lie at the same places; they are told apart by the row, and each is there."""
    reader = open_slide(str(painted), "wsi")
    pixels = reader.read(100, 100, 0, 256)
    reader.close()
    encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
    pq.write_table(pa.table({"image": [encoded, encoded], "mpp": [0.5, 0.5]}), tmp_path / "rows.parquet")
    job = make(tmp_path / "out", [tmp_path / "rows.parquet"], STAIN, data=SMALL)
    (record,) = predict(job)
    assert set(contents(job)) == {"rows/nuclei.parquet"}, "no GeoJSON: there is no slide to lay it on"
    nuclei = pq.read_table(tmp_path / "out" / "slides" / "rows" / "nuclei.parquet").to_pandas()
    first, second = (nuclei[nuclei["row"] == row] for row in (0, 1))
    assert len(first) == len(second) > 0 and nuclei["id"].is_unique
    assert first["x_px"].tolist() == second["x_px"].tolist()
    assert record["summary"]["seen_mm2"] == pytest.approx(2 * (256 * 0.5e-3) ** 2)


def _finish(job):
    folder = RunFolder(job.config.output)
    folder.set_status("running")
    finish(job, folder)
    return folder.read_json("accounting.json")
