"""DICOM slides: a file a level, one slide a series, wherever they lie."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csat.errors import ConfigError, SlideError
from csat.slides.reader import open_slide
from csat.storage import files
from csat.storage.dicom import same_slide, series_uid
from csat.storage.node_cache import SlideCache
from csat.tiles.grid import TilingConfig
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide

UID = "1.2.826.0.1.99"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
FRAME_PX = 10  # edge of the frames of sm_image_tiny.dcm


def element(group, number, value, form=b"UI", *, implicit=False):
    """One data element. `value` None: a sequence whose length is not stated, of one item that names another series."""
    tag = struct.pack("<HH", group, number)
    if value is None:
        inner = element(0x0020, 0x000E, b"9.9", implicit=implicit)
        value = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        value += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        return tag + (b"" if implicit else b"SQ\0\0") + struct.pack("<I", 0xFFFFFFFF) + value
    value += b"\0" * (len(value) % 2)
    return tag + (struct.pack("<I", len(value)) if implicit else form + struct.pack("<H", len(value))) + value


def head(*, syntax=EXPLICIT, uid=UID):
    implicit = syntax == IMPLICIT
    body = element(0x0008, 0x0016, b"1.2", implicit=implicit) + element(0x0008, 0x1115, None, implicit=implicit)
    if uid:
        body += element(0x0020, 0x000E, uid.encode(), implicit=implicit)
    body += element(0x0028, 0x0010, b"\x01\x00", b"US", implicit=implicit)
    return bytes(128) + b"DICM" + element(0x0002, 0x0010, syntax.encode()) + body


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_the_series_is_that_of_the_file_not_one_that_it_refers_to(syntax):
    assert series_uid(head(syntax=syntax)) == UID
    assert series_uid(head(syntax=syntax, uid=None)) is None
    assert series_uid(head(syntax="1.2.840.10008.1.2.2")) is None  # big endian: retired, no slide has it


@given(st.integers(0, 300), st.binary(max_size=40), st.sampled_from([EXPLICIT, IMPLICIT]))
def test_a_damaged_head_is_no_series(cut, noise, syntax):
    assert series_uid(head(syntax=syntax)[:cut]) in (None, UID)
    series_uid(head(syntax=syntax)[:cut] + noise)  # whatever it finds, it raises nothing
    assert series_uid(noise) is None


def test_files_of_one_folder_and_series_are_one_slide(tmp_path):
    for name, uid in {"a/1.dcm": "1.1", "a/2.dcm": "1.1", "a/3.DCM": "1.2", "b/1.dcm": "1.1", "a/x.dcm": None}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(head(uid=uid))
    paths = [str(path) for path in tmp_path.rglob("*.[dD][cC][mM]")]
    names = [[file.removeprefix(f"{tmp_path}/") for file in group] for group in same_slide(paths)]
    assert names == [["a/1.dcm", "a/2.dcm"], ["a/3.DCM"], ["a/x.dcm"], ["b/1.dcm"]]
    rows = list_slides([str(tmp_path)])
    assert [row.slide.removeprefix(f"{tmp_path}/") for row in rows] == ["a/1.dcm", "a/3.DCM", "a/x.dcm", "b/1.dcm"]

    (tmp_path / "list.csv").write_text("slide,patient,mpp\na/1.dcm,P1,\na/2.dcm,,0.5\na/gone.dcm,P2,\n")
    rows = list_slides([str(tmp_path / "list.csv")])
    assert [(row.slide.rpartition("/")[2], row.patient, row.mpp) for row in rows] == [
        ("1.dcm", "P1", 0.5),
        ("gone.dcm", "P2", None),
    ]
    (tmp_path / "list.csv").write_text("slide,patient\na/1.dcm,P1\na/2.dcm,P2\n")
    with pytest.raises(ConfigError, match="named twice, with patient 'P1' and 'P2'"):
        list_slides([str(tmp_path / "list.csv")])


def level_of(data: bytes, edge_px: int) -> bytes:
    """The real tiny slide as another, smaller level of its series: another instance, of fewer frames."""
    instance = b"1.2.826.0.1.3680043.9.7433.3.12857516184849951143044513877282227"
    out = data.replace(instance, instance[:-1] + b"1")
    frames = (edge_px // FRAME_PX) ** 2
    for tag, value in {
        b"\x48\x00\x06\x00UL\x04\x00": struct.pack("<I", edge_px),
        b"\x48\x00\x07\x00UL\x04\x00": struct.pack("<I", edge_px),
        b"\x28\x00\x08\x00IS\x02\x00": str(frames).encode().ljust(2),
    }.items():
        assert out.count(tag) == 1
        start = out.index(tag) + len(tag)
        out = out[:start] + value + out[start + len(value) :]
    start = out.index(b"\xe0\x7f\x10\x00OB\0\0") + 8
    size = 3 * FRAME_PX**2 * frames
    return out[:start] + struct.pack("<I", size) + out[start + 4 : start + 4 + size]


@pytest.mark.parametrize("place", ["local", "bucket"])
def test_a_series_opens_with_all_its_levels(place, tmp_path, shared_data, request):
    data = (shared_data("slides_mini") / "sm_image_tiny.dcm").read_bytes()
    root = str(tmp_path / "slides") if place == "local" else f"{request.getfixturevalue('s3')}/slides"
    other = (shared_data("slides_mini") / "camelyon16_29um.dcm").read_bytes()
    for name, content in {"a.dcm": level_of(data, 20), "b.dcm": data, "c.dcm": other}.items():
        files.write_bytes(files.join(root, name), content)
    cache = SlideCache(tmp_path / "cache", 1 << 24)
    first, second = list_slides([root])
    assert [row.slide.rpartition("/")[2] for row in (first, second)] == ["a.dcm", "c.dcm"]
    slide = open_slide(first.slide, first.kind, cache=cache)
    assert [(level.width_px, level.height_px) for level in slide.levels] == [(50, 50), (20, 20)]
    assert slide.mpp == pytest.approx(0.499)
    slide.close()
    if place == "bucket":  # the two levels, not the neighbour
        assert sorted(path.name for path in (tmp_path / "cache").rglob("*.dcm")) == ["a.dcm", "b.dcm"]


def test_a_real_dicom_slide_is_tiled(shared_data):
    (row,) = list_slides([str(shared_data("slides_mini") / "camelyon16_29um.dcm")])
    table = tile_slide(row, TilingConfig(mpp=29.0, tile_px=32))
    tissue = np.array(table["tissue"])
    assert 80 < len(tissue) < 250 and tissue.min() >= 0.5  # four pieces, a fifth of the picture


def test_a_dicom_file_that_is_no_slide_says_so(tmp_path):
    (tmp_path / "tile.dcm").write_bytes(head())
    with pytest.raises(SlideError, match=r"tile\.dcm: (OpenSlide .* does not know this format|cannot be opened)") as caught:
        open_slide(str(tmp_path / "tile.dcm"), "wsi")
    assert caught.value.reason == "unreadable"
