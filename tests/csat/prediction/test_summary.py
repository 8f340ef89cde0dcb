"""The row of a slide: areas that count once, nuclei and classes as in the files."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from csat.prediction.slide_frame import Place, SlideFrame
from csat.prediction.slide_maps import SlideMap, cells_of, grid_of_um
from csat.prediction.summary import mask_summary, nuclei_summary, seen_areas, slide_row, tiles_summary, write_summary
from csat.prediction.table import nuclei_table
from tests.csat.prediction.oracle import frame_for, painted, places_on, put_together
from tests.csat.prediction.tiles import CLASSES, FRAME, SAID, written_tiles


def test_areas_count_once_and_not_beyond_the_slide():
    places = [Place(0, 0, 100, 100), Place(50, 0, 150, 100), Place(1950, 0, 2050, 100)]
    seen, tissue = seen_areas(FRAME, places, np.array([1.0, 0.5, np.nan]))
    um2 = 0.25
    assert seen == pytest.approx((150 + 50) * 100 * um2 / 1e6)
    assert tissue == pytest.approx((50 + 0.75 * 50 + 0.5 * 50 + 50) * 100 * um2 / 1e6)
    assert seen_areas(FRAME, [], np.zeros(0)) == (0, 0)
    no_mpp = SlideFrame(slide="a", width_px=100, height_px=100)
    assert np.isnan(seen_areas(no_mpp, places, np.ones(3))).all()


def test_the_summary_of_nuclei_is_that_of_their_table(tmp_path):
    labels = painted()
    frame = frame_for(labels)
    nuclei, _ = put_together(labels, frame, places_on(frame))
    uri = str(tmp_path / "nuclei.parquet")
    with nuclei_table(uri, frame, classes=("nucleus", "other")) as table:
        table.write(nuclei)
    row = nuclei_summary(uri, 0.1)
    assert row["nuclei"] == row["nuclei_nucleus"] == labels.max() and row["nuclei_other"] == 0 and row["nuclei_cut"] == 0
    assert row["per_mm2_nucleus"] == pytest.approx(labels.max() / 0.1) and row["per_mm2_other"] == 0
    assert row["area_um2_nucleus"] == pytest.approx((labels > 0).sum() * 0.25 / labels.max(), rel=1e-4)
    assert row["area_um2_other"] is None and nuclei_summary(uri, float("nan"))["per_mm2"] is None


def test_the_summary_of_tiles_and_of_a_mask(tmp_path):
    said = tiles_summary(written_tiles(tmp_path))
    assert said["tiles_tumour"] == 2 and said["tiles_a/b"] == 1 and said["mean_tumour"] == pytest.approx(SAID[:, 0].mean())
    grid = grid_of_um(FRAME, 1.0)
    with SlideMap(grid, 1, labels=True) as mask:
        values = np.zeros((2, 200, 400), np.float32)
        values[0, :, :100], values[1, :, 100:] = 1, 1
        mask.add(cells_of(values, Place(0, 0, 400, 200), grid, labels=True), Place(0, 0, 400, 200))
        areas = mask_summary(mask, CLASSES)
    assert areas == {"mm2_tumour": pytest.approx(50 * 100 / 1e6), "mm2_a/b": pytest.approx(150 * 100 / 1e6)}


def test_a_row_for_each_slide(tmp_path):
    first = slide_row(FRAME, tiles=9, answered=8, seen_mm2=1.5, tissue_mm2=1.0, nuclei=7)
    other = slide_row(FRAME, tiles=3, answered=0, seen_mm2=float("nan"), tissue_mm2=float("nan"), reason="unreadable")
    write_summary(str(tmp_path / "summary.parquet"), [first, other])
    rows = pq.read_table(tmp_path / "summary.parquet").to_pylist()
    assert rows[0]["nuclei"] == 7 and rows[0]["reason"] is None and rows[0]["mpp"] == 0.5
    assert rows[1]["seen_mm2"] is None and rows[1]["reason"] == "unreadable" and rows[1]["tiles_answered"] == 0
