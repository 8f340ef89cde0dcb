"""The project as an installed package: what it needs, what it brings along, and how it finds itself."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from csat.errors import ConfigError
from tests.lowest_versions import lowest, ranges
from workflows.shell.installation import is_installed, python_path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("csat", "teachers", "workflows")
WEIGHTS = ("csat/weights/toy/config.json", "csat/weights/toy/README.md", "csat/weights/toy/student.safetensors")
OPTIONAL = {"mlflow", "openvino"}  # imported where a user asks for it, with a sentence where it is missing


def pins():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_pins_and_ranges_are_of_the_same_packages():
    assert {(canonicalize_name(each.name), *sorted(each.extras)) for each in pins()} == {
        (canonicalize_name(each.name), *sorted(each.extras)) for each in ranges()
    }


@pytest.mark.parametrize("pin", pins(), ids=lambda pin: pin.name)
def test_every_pin_lies_in_its_range(pin):
    (version,) = [each.version for each in pin.specifier]
    (allowed,) = [each for each in ranges() if canonicalize_name(each.name) == canonicalize_name(pin.name)]
    assert allowed.specifier.contains(version)
    assert Version(lowest(allowed)) <= Version(version)


def test_every_import_is_of_a_package_that_is_asked_for():
    brought_by = importlib.metadata.packages_distributions()
    asked = {canonicalize_name(each.name) for each in ranges()}
    for path in [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in {module.partition(".")[0] for module in modules} - {*sys.stdlib_module_names, *PACKAGES, *OPTIONAL}:
                found = {canonicalize_name(each) for each in brought_by.get(name, [])}
                assert found & asked, f"{path.relative_to(ROOT)} imports {name} of {found or 'nowhere'}"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder into which a wheel of this project was unpacked, as pip does it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "tests").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt", "tests/requirements.txt"):
        shutil.copy(ROOT / name, source / name)
    for name in WEIGHTS:  # a student of the package, of which there may be none yet
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("{}")
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(built)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=200)
    (wheel,) = built.glob("*.whl")
    folder = tmp_path_factory.mktemp("environment") / "site-packages"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(folder, *arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


def test_a_wheel_has_every_file_of_the_packages(installed):
    def files(root):
        found = {path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*") if path.is_file()}
        return {path for path in found if "__pycache__" not in path.parts}

    assert files(installed) == files(ROOT) | {Path(name) for name in WEIGHTS}
    assert {path.name for path in installed.iterdir() if "dist-info" not in path.name} == set(PACKAGES)


def test_the_command_of_a_wheel_is_the_module(installed):
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    (function,) = re.findall(r"^csat = (.*)$", entry.read_text(), re.MULTILINE)
    assert function == "workflows.__main__:main"


def test_an_installed_project_finds_recipes_and_templates(installed, tmp_path):
    code = (
        "from workflows.shell.command_line import recipe_names; from csat.evaluation.reports.page import render; import csat;"
        "assert 'demo' in recipe_names(); print(csat.__file__);"
        "render('macros.html')"
    )
    done = run(installed, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installed / "csat" / "__init__.py")


def test_an_installed_project_registers_its_models_with_timm_and_has_no_other_effect(installed, tmp_path):
    code = (
        "import csat, sys; assert not {'torch', 'timm', 'numpy', 'logging'} & set(sys.modules);"
        "import csat.model, timm; assert timm.is_model('csat') and timm.is_model('csat_nano')"
    )
    done = run(installed, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_workers_of_a_checkout_get_its_folder(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert not is_installed() and python_path() == str(ROOT)
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert python_path().split(os.pathsep) == [str(ROOT), "/mine"]


def test_workers_of_an_installed_project_get_nothing_that_hides_the_standard_library(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert is_installed(installed) and python_path(installed) == ""
    (tmp_path / "teachers").mkdir()  # the user's own folder, and no package
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert python_path(installed) == "/mine"


def test_an_installed_project_beside_a_checkout_runs_where_both_are_the_same(installed, tmp_path, monkeypatch):
    """Ray has workers look in the working folder first."""
    shutil.copytree(installed, tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert python_path(installed) == ""
    with (tmp_path / "checkout" / "csat" / "words.py").open("a") as file:
        file.write("# newer\n")
    with pytest.raises(ConfigError, match="would load the other copy that is in"):
        python_path(installed)
