"""Where the project runs from, a checkout or the packages of an interpreter, and how its workers find the same code."""

import os
from hashlib import sha256
from pathlib import Path

from csat.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("csat", "teachers", "workflows")


def python_path(root: Path = ROOT) -> str:
    """PYTHONPATH of the workers.

    A checkout need not be installed on the nodes: its folder travels in the path (or as the job's working folder). What is
    installed is found by the nodes' own Python; its folder would put all packages of this machine before the standard library.

    Raises:
        ConfigError: the working folder, which Ray has workers look in first, holds a copy that is not the installed one.
    """
    inherited = os.environ.get("PYTHONPATH", "")
    if not is_installed(root):
        return os.pathsep.join(filter(None, [str(root), inherited]))
    here = Path.cwd()
    if (theirs := _sources(here)) and theirs != _sources(root):
        raise ConfigError(
            f"this command is installed in {root}, and its workers would load the other copy that is in {here}: install that "
            "one (`pip install .`), run its scripts (`python workflows/pretrain.py`), or run this command in another folder"
        )
    return inherited


def is_installed(root: Path = ROOT) -> bool:
    """Whether the project is a package among the packages of an interpreter: no checkout, and no copy of one."""
    return root.name in ("site-packages", "dist-packages")


def fingerprint(root: Path = ROOT) -> str:
    """A hash over the project's code: equal where two nodes run the same."""
    digest = sha256()
    for path, content in sorted(_sources(root).items()):
        digest.update(f"{path} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _sources(root: Path) -> dict[Path, bytes]:
    """What Python would load of the project from this folder. A folder without `__init__.py` hides no package."""
    packages = [root / name for name in PACKAGES if (root / name / "__init__.py").exists()]
    return {path.relative_to(root): path.read_bytes() for package in packages for path in package.rglob("*.py")}
