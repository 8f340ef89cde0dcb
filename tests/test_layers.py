"""Who may import whom, and that importing has no effects: the conventions as a test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("csat", "teachers", "workflows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Lower may not import higher; equals may not import each other, except inside one folder.
LAYERS = {
    "csat.text": 0,
    "csat.errors": 0,
    "csat.nuclei": 0,
    "csat.settings": 0,
    "csat.responses": 1,
    "csat.data": 2,
    "csat.model": 3,
    "csat.losses": 4,
    "csat.methods": 5,
    "csat.training": 6,
    "csat.export": 7,
    "csat.evaluation": 8,
}
# Heavy libraries and the places that may open their door.
DOORS = {
    "ray": ("workflows/", "teachers/pool.py"),
    "openslide": ("csat/data/slides.py",),
    "s3fs": ("csat/data/storage.py",),
    "timm": ("csat/model/", "teachers/"),
    # Pictures and masks are decoded by csat.data.pixels alone; the other two write them.
    "PIL": ("csat/data/pixels.py", "csat/data/tifs.py", "csat/evaluation/page.py"),
    "tifffile": ("csat/data/tifs.py", "csat/data/tif_pages.py", "csat/data/synthetic.py"),
    "imagecodecs": ("csat/data/pixels.py",),
}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def layer_of(module):
    parts = module.split(".")
    return LAYERS.get(".".join(parts[:2]))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_downward(path):
    me = name_of(path)
    for module in imports_of(path):
        top = module.split(".")[0]
        if top not in (*PACKAGES, "tests", "cluster"):
            continue
        assert top not in ("tests", "cluster"), f"{me} imports {module}"
        if me.startswith("csat"):
            assert top == "csat", f"{me} imports {module}: csat imports nothing else of ours"
        if me.startswith("teachers"):
            assert top != "workflows", f"{me} imports {module}"
        mine, theirs = layer_of(me), layer_of(module)
        if me.startswith("csat.") and mine is not None and theirs is not None:
            assert theirs <= mine, f"{me} imports {module}, which is above it"


def test_sibling_methods_do_not_import_each_other():
    shared = {"csat.methods.contract", "csat.methods.registry"}
    for path in (ROOT / "csat" / "methods").glob("*.py"):
        if path.stem in ("registry", "contract", "__init__"):
            continue
        for module in imports_of(path):
            assert not module.startswith("csat.methods.") or module in shared, f"{path.name} imports its sibling {module}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_one_door_per_heavy_library(path):
    here = str(path.relative_to(ROOT))
    for module in imports_of(path):
        allowed = DOORS.get(module.split(".")[0])
        assert allowed is None or here.startswith(allowed), f"{here} imports {module}; its door is {allowed}"
        assert not module.startswith(("ray._private", "ray._internal")), f"{here} uses Ray's private parts"


def test_importing_the_science_does_not_load_ray():
    code = (
        "import sys, logging, csat, teachers, teachers.registry, csat.training.loop, csat.methods.registry;"
        "assert 'ray' not in sys.modules, 'ray was loaded';"
        "assert not logging.getLogger().handlers, 'logging was set up';"
        "import torch; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_tiling_slides_does_not_load_torch():
    """Its tasks are many processes that each live for seconds."""
    code = "import sys, workflows.tile_slides; assert 'torch' not in sys.modules, 'torch was loaded'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_no_catch_all_modules():
    names = {path.name for path in SOURCES}
    assert not names & {"utils.py", "helpers.py", "common.py"}
