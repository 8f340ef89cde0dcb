"""csat.load: a model in the hand, shown tiles in whatever form people have them, and real slides."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from PIL import Image

import csat
from csat.errors import ConfigError
from csat.instances import instances_from_hv
from csat.model.files import save_model
from csat.prediction.opening import open_answers
from csat.slides.reader import open_slide
from csat.slides.synthetic import make_slides
from tests.csat.export.models import LABEL, METADATA, NUCLEI, TILE_PX, real_tiles, student

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that finds nuclei and one that classifies."""
    root = tmp_path_factory.mktemp("loaded")
    save_model(student(NUCLEI), str(root / "nuclei" / "exported"), METADATA)
    save_model(student(LABEL), str(root / "classes" / "exported"), METADATA)
    return root


@pytest.fixture(scope="module")
def model(folder):
    return csat.load(str(folder / "nuclei"))


def tile_of_noise(edge=TILE_PX):
    return np.random.default_rng(3).integers(0, 256, (edge, edge, 3), np.uint8)


def test_a_tile_in_every_form_gets_the_same_answer(model, folder):
    tile = tile_of_noise()
    expected = open_answers(str(folder / "nuclei")).answer(tile[None])
    chw = torch.from_numpy(tile).permute(2, 0, 1)
    forms = {
        "array": tile,
        "view": tile[:, ::1],
        "floats": tile / 255,
        "float32": (tile / 255).astype(np.float32),
        "int64": tile.astype(np.int64),
        "image": Image.fromarray(tile),
        "with alpha": Image.fromarray(tile).convert("RGBA"),
        "tensor": chw,
        "float tensor": chw.float() / 255,
        "half tensor that learns": (chw.float() / 255).requires_grad_(),
    }
    for name, form in forms.items():
        said = model(form)
        assert set(said) == {"np", "hv", "tp"}, name
        for key, values in said.items():
            np.testing.assert_array_equal(values, expected[key][0], err_msg=name)
    assert model(tile)["np"].shape == (1, 52, 52) and model(tile)["np"].dtype == np.float32


def test_several_tiles_keep_their_axis(model):
    tiles = np.stack([tile_of_noise(), tile_of_noise()[::-1]])
    said, single = model(tiles), model(tiles[1])
    assert said["hv"].shape == (2, 2, 52, 52)
    np.testing.assert_allclose(said["hv"][1], single["hv"], atol=1e-5)
    assert model(torch.from_numpy(tiles).permute(0, 3, 1, 2))["tp"].shape == (2, 3, 52, 52)


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (np.zeros((32, 64, 3), np.uint8), r"a tile is \[64, 64, 3\] here, and this is \[32, 64, 3\]"),
        (np.zeros((64, 64), np.uint8), "a tile is"),
        (np.zeros((0, 64, 64, 3), np.uint8), "a tile is"),
        (torch.zeros(64, 64, 3), r"a tile is \[3, 64, 64\] here, and this is \[64, 64, 3\]"),
        (np.full((64, 64, 3), 2.5), "from 2.5 to 2.5: undo the normalisation"),
        (np.full((64, 64, 3), -1), "from -1 to -1"),
        (np.full((64, 64, 3), np.nan), "pixels are integers from 0 to 255"),
    ],
)
def test_what_is_no_tile_is_refused_with_what_is(model, tile, message):
    with pytest.raises(ConfigError, match=message):
        model(tile)


def test_nuclei_are_those_of_the_maps(model):
    tile = real_tiles(1)[0]
    said, found = model(tile), model.nuclei(tile)
    instances = instances_from_hv(said["np"][0], said["hv"], mpp=0.5)
    assert len(found) == instances.max() > 0
    for number, nucleus in enumerate(found, 1):
        rows, columns = np.nonzero(instances == number)
        assert nucleus.x == pytest.approx(6 + columns.mean() + 0.5, abs=1e-4)  # the margin of 6 px is the tile's
        assert nucleus.y == pytest.approx(6 + rows.mean() + 0.5, abs=1e-4)
        assert nucleus.area_um2 == pytest.approx(len(rows) * 0.25, rel=1e-5)
        assert nucleus.type in ("one", "two") and 0.5 <= nucleus.probability <= 1
        assert nucleus.outline.shape[1] == 2 and np.array_equal(nucleus.outline[0], nucleus.outline[-1])
        assert shapely.Polygon(nucleus.outline).is_valid
    with pytest.raises(ConfigError, match="nuclei are of one tile, not of 2"):
        model.nuclei(np.stack([tile, tile]))


def test_a_classifier_says_a_class_and_has_no_nuclei(folder):
    model = csat.load(str(folder / "classes" / "exported"))
    label = model(tile_of_noise())["label"]
    assert label.shape == (3,) and label.sum() == pytest.approx(1, abs=1e-5)
    assert model.classes == ("fat", "gland", "tumour") and "label of tiles of 64 px at 0.5 um/px" in repr(model)
    with pytest.raises(ConfigError, match="answers label; nuclei need the maps np and hv"):
        model.nuclei(tile_of_noise())


def test_a_tile_of_a_slide_is_read_at_the_models_resolution(model, tmp_path):
    (slide,) = make_slides(tmp_path, num_slides=1, size_px=768, seed=5)
    reader = open_slide(str(slide), "wsi")
    half_px = round(TILE_PX / 2 * model.mpp / reader.mpp)  # of a tile, in pixels of the slide
    reader.close()
    tile = model.on(str(slide), 128, 64)
    assert tile.shape == (TILE_PX, TILE_PX, 3) and tile.dtype == np.uint8
    next_one = model.on(str(slide), 128 + half_px, 64)
    difference = np.abs(tile[:, TILE_PX // 2 :].astype(int) - next_one[:, : TILE_PX // 2]).mean()
    assert difference < 2
    assert (model.on(str(slide), 10_000, 0) == 255).all()
    assert model(tile)["np"].shape == (1, 52, 52)
    model.close()


def test_importing_csat_loads_nothing_and_says_what_there_is(tmp_path):
    heavy = "{'torch', 'numpy', 'timm', 'csat.prediction'}"
    code = f"import csat, sys; assert not {heavy} & set(sys.modules); print(csat.load.__doc__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "ready to be shown tiles" in done.stdout, done.stderr
    page = subprocess.run([sys.executable, "-m", "pydoc", "csat"], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    assert 'model = csat.load("runs/nuclei")' in page and "load(place: str" in page
    assert "(an Any" not in page and max(map(len, page.splitlines())) < 140


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="neither a run folder nor an exported model"):
        csat.load(str(tmp_path))


def test_from_a_tile_to_a_picture_as_the_page_says(folder, tmp_path, monkeypatch):
    """The first lines of docs/export.md, as they stand, on a real slide."""
    slides = sorted((ROOT / ".." / "shared" / "data" / "slides").glob("*.svs"))
    if not slides:
        pytest.skip("no real slide in ../shared/data/slides")
    lines = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)[1]
    (tmp_path / "slide.svs").symlink_to(slides[0].resolve())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "nuclei").symlink_to(folder / "nuclei")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict = {}
    exec(lines, names)
    assert len(names["nuclei"]) > 0 and np.asarray(names["tile"]).std() > 5
    with Image.open(tmp_path / "nuclei.png") as picture:
        assert picture.size == (640, 480)
