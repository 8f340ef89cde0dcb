"""A parquet of encoded tiles: each row is tiled by itself, with its own patient and resolution."""

import io
import math
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csat.errors import SlideError
from csat.tiles.grid import TilingConfig
from csat.tiles.sources import SlideRow, list_slides
from csat.tiles.tiling import cut_slide, tile_slide
from tests.csat.tiles.pictures import png_of


def test_encoded_tiles_of_a_parquet_keep_their_rows_patients_and_resolutions(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3)).astype(np.uint8)
    columns = dict(image=[png_of(each) for each in pixels], mpp=[0.5, 0.25, 0.5, 0.25], slide=["a", "a", "b", "b"])
    columns["patient"] = ["p", None, None, "q"]
    path = tmp_path / "tiles.parquet"
    pq.write_table(pa.table(columns), path)
    row = SlideRow(slide=str(path), kind="parquet", num_tiles=4)
    rows = tile_slide(row, TilingConfig(mpp=0.5, tile_px=32)).to_pylist()
    assert [r["row"] for r in rows] == [0] * 4 + [1] + [2] * 4 + [3]  # 64 px at 0.5 are 2 x 2 tiles, at 0.25 just one
    assert [r["read_px"] for r in rows] == [32] * 4 + [64] + [32] * 4 + [64]
    assert [r["patient"] for r in rows] == ["p"] * 4 + ["a"] + ["b"] * 4 + ["q"]
    assert all(math.isnan(r["tissue"]) and r["mpp"] == 0.5 for r in rows)


def _parquet(path, num_rows, **columns) -> SlideRow:
    data = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), (190, 90, 160), np.uint8)).save(data, "PNG")
    pq.write_table(pa.table({"image": [data.getvalue()] * num_rows, **columns}), path)
    return SlideRow(slide=str(path), kind="parquet", num_tiles=num_rows)


def test_a_row_that_does_not_fit_is_refused_by_itself_and_says_which_column(tmp_path):
    mpps = [0.5, 0.25, None, 9.0, 352.8, 0.1, 0.5]  # of row 5 a tile would need more pixels than it has
    row = _parquet(tmp_path / "a.parquet", 7, mpp=mpps)
    cut = cut_slide(row, TilingConfig(mpp=0.5, tile_px=32))
    assert cut.tiles["row"].unique().to_pylist() == [0, 1, 6]
    refused = {each["row"]: (each["reason"], each["message"]) for each in cut.refused.to_pylist()}
    assert [(index, reason) for index, (reason, _) in refused.items()] == [
        (2, "no_mpp"),
        (3, "needs_upsampling"),
        (4, "no_mpp"),
        (5, "too_small"),
    ]
    assert all(f"a.parquet, row {index}, column mpp: " in message for index, (_, message) in refused.items())
    assert "352.8 is no resolution" in refused[4][1] and "9 um/px" in refused[3][1]
    typed = cut_slide(row, TilingConfig(mpp=0.5, tile_px=32, source_mpp=0.5))
    assert typed.tiles["row"].unique().to_pylist() == [0, 1, 2, 6], "a typed default is for rows that state nothing"
    sources = dict(zip(typed.tiles["row"].to_pylist(), typed.tiles["mpp_source"].to_pylist(), strict=True))
    assert sources == {0: "stated", 1: "stated", 2: "source_mpp", 6: "stated"}
    given = cut_slide(replace(row, mpp=0.5), TilingConfig(mpp=0.5, tile_px=32))
    assert given.refused.num_rows == 0 and set(given.tiles["mpp_source"].to_pylist()) == {"given"}
    as_they_are = cut_slide(row, TilingConfig(mpp=None, tile_px=32))
    assert as_they_are.tiles["row"].unique().to_pylist() == list(range(7)) and as_they_are.refused.num_rows == 0


def test_a_parquet_none_of_whose_rows_fits_is_quarantined_as_a_whole(tmp_path):
    row = _parquet(tmp_path / "a.parquet", 3, mpp=["40x", "9", ""])
    with pytest.raises(
        SlideError, match="a.parquet: none of its 3 rows fits; the first: .*row 0, column mpp: '40x' is no"
    ) as caught:
        tile_slide(row, TilingConfig(mpp=0.5, tile_px=32))
    assert caught.value.reason == "no_mpp"
    with pytest.raises(SlideError, match=r"a.parquet: its finest level has 9 um/px"):
        tile_slide(_parquet(tmp_path / "a.parquet", 2, mpp=[9, 9]), TilingConfig(mpp=0.5, tile_px=32))


@pytest.mark.parametrize(
    "patients",
    [
        pa.array([11, None]),
        pa.array([11.0, None]),
        pa.array([11.0, float("nan")]),
        pa.array(["11", None]).dictionary_encode(),
        pa.array(["11", ""], pa.large_string()),
        pa.array(["11", None]).cast(pa.string_view()),
        pa.array([b"11", None], pa.binary()),
        pa.array([Decimal("11.00"), None]),
    ],
    ids=lambda patients: str(patients.type),
)
@pytest.mark.parametrize("column", ["patient", "slide"])
def test_ids_in_a_parquet_are_text_whatever_their_type(tmp_path, patients, column):
    pixels = np.full((64, 64, 3), 90, np.uint8)
    pq.write_table(pa.table({"image": [png_of(pixels)] * 2, column: patients}), tmp_path / "a.parquet")
    row = list_slides([str(tmp_path)])[0]
    assert tile_slide(row, TilingConfig(mpp=None, tile_px=64))["patient"].to_pylist() == ["11", None]


def test_a_column_without_any_id(tmp_path):
    table = pa.table({"image": [png_of(np.full((64, 64, 3), 90, np.uint8))] * 2, "patient": pa.nulls(2)})
    pq.write_table(table, tmp_path / "a.parquet")
    row = list_slides([str(tmp_path)])[0]
    assert tile_slide(row, TilingConfig(mpp=None, tile_px=64))["patient"].to_pylist() == [None, None]
