"""The lower end of every range in pyproject.toml, as pins: what `make test-lowest` installs."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def ranges() -> list[Requirement]:
    """The dependencies of pyproject.toml."""
    return [Requirement(line) for line in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]]


def lowest(requirement: Requirement) -> str:
    """The version at which a range begins. A range has one beginning."""
    (version,) = [each.version for each in requirement.specifier if each.operator == ">="]
    return version


if __name__ == "__main__":
    for requirement in ranges():
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        print(f"{requirement.name}{extras}=={lowest(requirement)}")
