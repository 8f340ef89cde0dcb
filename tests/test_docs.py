"""What README.md and docs/*.md name exists: paths, modules, what is imported from them, links and the headings they go to.

And a page can be read: its lines wrap, but for tables and what cannot be broken.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "cluster" / "README.md"]
FOLDERS = "csat|teachers|workflows|cluster|docs|tests"
WIDTH = 100  # characters of a line
PLACEHOLDERS = {"workflows/X.py"}
PATH = re.compile(rf"(?<![\w./$-])(?:{FOLDERS})/[\w./*-]*")
MODULE = re.compile(r"(?<![\w./-])(?:csat|teachers|workflows|tests)(?:\.[a-z_]\w*)+\b(?![/(-])")
IMPORT = re.compile(r"^from ((?:csat|teachers|workflows)[\w.]*) import ([\w, ]+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SUFFIXES = {"py", "md", "yaml", "txt", "html", "sh", "json", "toml"}


def each(pattern):
    return [pytest.param(page, found, id=f"{page.stem}:{found}") for page in PAGES for found in _found(page, pattern)]


def _found(page, pattern):
    """Distinct findings, in order. An ending of a file, as in `csat.py`, makes no module."""
    found = dict.fromkeys(match.group(0).rstrip(".") for match in pattern.finditer(page.read_text()))
    return [
        name for name in found if name not in PLACEHOLDERS and (pattern is PATH or name.rsplit(".", 1)[-1] not in SUFFIXES)
    ]


@pytest.mark.parametrize(("page", "path"), each(PATH))
def test_a_path_exists(page, path):
    assert list(ROOT.glob(path.rstrip("/"))), f"{page.name} names {path}"


@pytest.mark.parametrize(("page", "module"), each(MODULE))
def test_a_module_exists(page, module):
    assert _module(module) or _defines(*module.rsplit(".", 1)), f"{page.name} names {module}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_imported_exists(page):
    for module, names in IMPORT.findall(page.read_text()):
        for name in names.split(", "):
            assert _defines(module, name), f"{page.name}: {module} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_goes_somewhere(page):
    for link in LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in _anchors(target), f"{page.name} links to {link}; there are {_anchors(target)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_wrap(page):
    lines = [line for line in page.read_text().splitlines() if not line.startswith("|") and " " in line.strip()]
    assert [line for line in lines if len(line) > WIDTH] == []


@pytest.mark.parametrize("package", ["csat", "workflows"])
def test_the_map_of_the_code_has_every_folder(package):
    (tree,) = re.findall(r"## Where things are\n\n```\n(.*?)```", (ROOT / "docs" / "design.md").read_text(), re.DOTALL)
    (branch,) = re.findall(rf"^{package}/ .*\n((?:  .*\n)+)", tree, re.MULTILINE)
    named = set(re.findall(r"\b(\w+)/", branch))
    folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= named, f"the map in docs/design.md lacks {folders - named}"


def _module(name):
    """The file of a module, or None."""
    path = ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py", path) if file.exists()), None)


def _defines(module, name):
    """Whether `from module import name` would work, as far as the source says."""
    file = _module(module)
    if _module(f"{module}.{name}"):
        return True
    if file is None or not file.is_file():
        return False
    tree = ast.parse(file.read_text())
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    return name in defined


def _anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
