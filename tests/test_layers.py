"""Who may import whom, and that importing has no effects: the conventions as a test."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("csat", "teachers", "workflows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# The rooms of csat, lowest first: a room may import those before its own line, and nothing of its own line but itself.
FLOORS = (
    ("columns", "instances", "licences", "losses", "nuclei", "shipped", "words"),
    ("errors",),
    ("precision", "responses", "storage"),
    ("panel", "settings"),
    ("runs", "slides", "tasks", "views"),
    ("labels", "model", "sweeps", "tiles"),
    ("methods", "prediction"),
    ("export", "training"),
    ("evaluation",),
)
# And of workflows: pages stand on top, and nobody imports them.
WINGS = (
    "workflows.pretraining",
    "workflows.finetuning",
    "workflows.comparison",
    "workflows.rates",
    "workflows.prediction",
    "workflows.exporting",
    "workflows.diagnosis",
)
# Wing → wings that it may use: what a sweep runs are fine-tunings, what a doctor looks at is a pretraining, and so is a stream
# whose rate is measured.
USES = {
    "workflows.sweep": ("workflows.finetuning",),
    "workflows.diagnosis": ("workflows.pretraining",),
    "workflows.rates": ("workflows.pretraining",),
}
# Heavy libraries and the places that may open their door.
DOORS = {
    "ray": ("workflows/", "teachers/stage.py"),
    # workflows/rates has what the project is held against: what one writes without it.
    "openslide": ("csat/slides/openslide_reader.py", "workflows/rates/openslide_loop.py"),
    "s3fs": ("csat/storage/files.py",),
    "timm": ("csat/model/", "teachers/", "workflows/rates/handwritten.py"),
    "onnx": ("csat/export/",),
    "onnxruntime": ("csat/prediction/onnx_answers.py", "csat/export/"),
    "huggingface_hub": ("csat/export/", "teachers/hub.py"),
    # Pictures and masks are decoded by csat.slides.pixels alone; the other two write them.
    "PIL": ("csat/slides/pixels.py", "csat/slides/tifs.py", "csat/evaluation/reports/page.py"),
    "tifffile": ("csat/slides/tifs.py", "csat/slides/tif_pages.py", "csat/slides/synthetic.py", "csat/prediction/ome_tif.py"),
    "imagecodecs": ("csat/slides/pixels.py",),
    "shapely": ("csat/prediction/",),
}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in SOURCES}
PAGES = {name_of(path) for path in (ROOT / "workflows").glob("*.py")} - {"workflows"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def modules_of(path):
    """Modules of ours that a file imports, those in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in NAMES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)


def floor_of(room):
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def room_of(module):
    """csat.storage, workflows.shell, teachers: the folder or, of what lies beside the folders, the file."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] != "teachers" else "teachers"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_downward(path):
    me = name_of(path)
    for module in imports_of(path):
        assert module.split(".")[0] not in ("tests", "cluster"), f"{me} imports {module}"
    for module in modules_of(path):
        assert floor_of_package(module) <= floor_of_package(me), f"{me} imports {module}"
        mine, theirs = room_of(me), room_of(module)
        if me.startswith("csat.") and module.startswith("csat.") and mine != theirs:
            assert floor_of(theirs.split(".")[1]) < floor_of(mine.split(".")[1]), (
                f"{me} imports {module}, which is not below it"
            )


def floor_of_package(module):
    return PACKAGES.index(module.split(".")[0])


def test_every_room_has_a_floor():
    rooms = {room_of(name_of(path)).partition(".")[2] for path in SOURCES if name_of(path).startswith("csat.")}
    assert rooms <= {room for rooms in FLOORS for room in rooms}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nobody_imports_a_page_and_wings_stand_apart(path):
    """A page is a file right in workflows/. A wing uses the shell and what is below; some use one other wing."""
    me = name_of(path)
    for module in modules_of(path):
        assert module not in PAGES, f"{me} imports the page {module}"
        mine, theirs = room_of(me), room_of(module)
        if theirs == "workflows.sweep":
            assert mine == theirs or me in PAGES, f"{me} imports {module}"
        if theirs in WINGS:
            is_allowed = mine == theirs or me in PAGES or theirs in USES.get(mine, ())
            assert is_allowed, f"{me} imports {module}"


def test_no_import_goes_in_a_circle():
    graph = TopologicalSorter({name_of(path): set(modules_of(path)) - {name_of(path)} for path in SOURCES})
    graph.prepare()  # CycleError names the modules


def test_sibling_methods_do_not_import_each_other():
    """A method is a file, or a folder once it has a first stage."""
    shared = {"contract", "registry", "__init__"}
    for path in (ROOT / "csat" / "methods").rglob("*.py"):
        mine = name_of(path).split(".")[2:3]
        for module in modules_of(path):
            theirs = module.split(".")[2:3] if module.startswith("csat.methods.") else []
            is_own = mine == theirs or not theirs or theirs[0] in shared or mine == ["registry"]
            assert is_own, f"{name_of(path)} imports its sibling {module}"


# The one private part of Ray that is used: what was spilled, for which the public door is a command that loads for seconds.
# Where a version has none of that name, the figure is not known, and a warning says so.
PRIVATE = {("workflows/shell/meters.py", "ray._private.internal_api")}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_one_door_per_heavy_library(path):
    here = str(path.relative_to(ROOT))
    for module in imports_of(path):
        allowed = DOORS.get(module.split(".")[0])
        assert allowed is None or here.startswith(allowed), f"{here} imports {module}; its door is {allowed}"
        is_private = module.startswith(("ray._private", "ray._internal")) and (here, module) not in PRIVATE
        assert not is_private, f"{here} uses Ray's private parts"


def test_importing_the_science_does_not_load_ray_nor_every_method():
    code = (
        "import sys, logging, csat, teachers, teachers.registry, csat.training.loop, csat.methods.registry;"
        "assert 'ray' not in sys.modules, 'ray was loaded';"
        "methods = {name.split('.')[2] for name in sys.modules if name.startswith('csat.methods.')};"
        "assert methods == {'contract', 'registry'}, methods;"
        "assert not logging.getLogger().handlers, 'logging was set up';"
        "import torch; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_tiling_slides_does_not_load_torch():
    """Its tasks are many processes that each live for seconds."""
    code = "import sys, workflows.shell.tile_slides; assert 'torch' not in sys.modules, 'torch was loaded'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_the_command_line_loads_neither_torch_nor_ray():
    """Help and refusals come at once; what was raised is looked up where it was raised."""
    code = (
        "import sys, workflows.shell.command_line;"
        "loaded = {'torch', 'ray', 'timm'} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("path", [path for path in SOURCES if not name_of(path).startswith("workflows")], ids=name_of)
def test_the_core_knows_no_flag(path):
    """Messages name settings (`data.tile_px`); the page that shows one spells its flag. A docstring may show a command."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines = [line for line in node.value.splitlines() if not re.match(r"    (python|csat) ", line)]
            assert not [line for line in lines if re.search(r"--[A-Za-z]", line)], f"{path}:{node.lineno} names a flag"


def test_no_catch_all_modules():
    names = {path.name for path in SOURCES}
    assert not names & {"utils.py", "helpers.py", "common.py"}
