"""heatmap.ome.tif and mask.ome.tif: opened by others' readers in a process without this package."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from csat.prediction.ome_tif import write_heatmap, write_mask
from csat.prediction.palette import colours_of
from csat.prediction.slide_frame import Place, SlideFrame
from csat.prediction.slide_maps import SlideMap, cells_of, grid_of_um
from tests.csat.prediction.answered_map import CLASSES, answers, gathered

READ = """
import json, sys, numpy as np, tifffile, openslide
path, out = sys.argv[1:]
with tifffile.TiffFile(path) as tiff:
    series = tiff.series[0]
    np.save(out, series.asarray())
    page = tiff.pages.first
    about = dict(
        big=tiff.is_bigtiff, ome=tiff.is_ome, xml=tiff.ome_metadata, axes=series.axes, tile=[page.tilewidth, page.tilelength],
        compression=page.compression.name, levels=[list(level.shape) for level in series.levels],
        photometric=page.photometric.name, kinds=[int(sub.tags["NewSubfileType"].value) for sub in page.pages or ()],
    )
with openslide.OpenSlide(path) as slide:
    about["size"], about["mpp"] = slide.dimensions, slide.properties.get("openslide.mpp-x")
    np.save(out + ".rgb.npy", np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3])
assert "csat" not in sys.modules
print(json.dumps(about))
"""


def read_elsewhere(path, tmp_path):
    """(values by tifffile, RGB by OpenSlide, what both say of the file)"""
    command = [sys.executable, "-c", READ, str(path), str(tmp_path / "values.npy")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return np.load(tmp_path / "values.npy"), np.load(tmp_path / "values.npy.rgb.npy"), json.loads(done.stdout)


def test_a_heatmap_can_be_read_back(tmp_path):
    path = tmp_path / "heatmap.ome.tif"
    with gathered() as slide_map:
        write_heatmap(str(path), slide_map, CLASSES)
        values, rgb, about = read_elsewhere(path, tmp_path)
        assert np.array_equal(values, slide_map.read(0))
    assert values.shape == (3, 750, 1300) and not values[:, :, 1000:].any()
    expected = answers().reshape(3, 750, 2, 1300, 2).mean((2, 4))[:, :, :1000]
    assert np.abs(values[:, :, :1000] / 255 - expected).max() < 0.51 / 255
    assert np.array_equal(rgb[..., 0], values[0])  # OpenSlide shows the first channel
    assert about["big"] and about["ome"] and about["axes"] == "CYX" and about["tile"] == [512, 512]
    assert about["compression"] in ("ADOBE_DEFLATE", "DEFLATE")
    assert about["levels"] == [[3, 750, 1300], [3, 375, 650], [3, 188, 325]] and about["kinds"] == [1, 1]
    assert about["size"] == [1300, 750] and float(about["mpp"]) == pytest.approx(0.5)
    for text in ('PhysicalSizeX="0.5"', 'PhysicalSizeXUnit="µm"', 'Name="tumour"', 'Name="stroma &amp; fat"', 'Name="Lücke"'):
        assert text in about["xml"]


def test_a_mask_has_labels_that_are_seen(tmp_path):
    path = tmp_path / "mask.ome.tif"
    with gathered(labels=True) as slide_map:
        write_mask(str(path), slide_map, CLASSES)
        labels, rgb, about = read_elsewhere(path, tmp_path)
        assert np.array_equal(np.squeeze(labels), slide_map.read(0)[0])
    labels = np.squeeze(labels)
    assert set(np.unique(labels)) == {0, 1, 2, 3} and not labels[:, 1000:].any()
    best = cv2.blur(answers()[:, :, :2000].transpose(1, 2, 0), (2, 2))[1::2, 1::2].argmax(2) + 1
    assert (labels[:, :1000] == best[:, :1000]).mean() > 0.98
    for label, colour in enumerate([(255, 255, 255), *colours_of(CLASSES).values()]):
        assert (rgb[labels == label] == colour).all(), label
    assert about["photometric"] == "PALETTE" and "0 not seen; 1 tumour; 2 stroma &amp; fat; 3 Lücke" in about["xml"]


def test_the_same_bytes_on_a_rerun(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        with gathered() as slide_map:
            write_heatmap(str(tmp_path / name / "heatmap.ome.tif"), slide_map, CLASSES)
    one, other = ((tmp_path / name / "heatmap.ome.tif").read_bytes() for name in ("one", "other"))
    assert one == other


def test_a_slide_without_resolution_has_none_in_its_maps(tmp_path):
    frame = SlideFrame(slide="a.png", width_px=100, height_px=80)
    grid = grid_of_um(frame, 2.0)
    assert (grid.cell_x, grid.mpp) == (8.0, None)
    with SlideMap(grid, 1) as slide_map:
        slide_map.add(cells_of(np.ones((1, 80, 100)), Place(0, 0, 100, 80), grid), Place(0, 0, 100, 80))
        write_heatmap(str(tmp_path / "heatmap.ome.tif"), slide_map, ("a",))
        values, _, about = read_elsewhere(tmp_path / "heatmap.ome.tif", tmp_path)
    assert (values == 255).all() and "PhysicalSize" not in about["xml"] and about["mpp"] is None
