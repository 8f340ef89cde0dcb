"""Models that come with the package, by name: each is an exported folder below `weights`, with its card and licence lines.

    csat.load("csat-nuclei")
    python workflows/predict.py --model csat-nuclei --slides slide.svs --output predicted
    python workflows/pretrain.py --teacher hovernet-nuclei --slides slides --run_folder runs/student

Wherever a model is asked for, such a name may stand in the place of a folder. export.py writes one (its setting `small`).
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "weights"
MARK = "config.json"  # it makes a folder a model


def names() -> list[str]:
    """Of all that there are."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{MARK}"))


def folder_of(name: str) -> str | None:
    """The folder of the model of that name; None: there is none."""
    return str(FOLDER / name) if name in names() else None


def also() -> str:
    """What a message about a model that is not there adds: which come with the package."""
    return f". With the package come: {', '.join(names())}" if names() else ""


def is_shipped(said: str) -> bool:
    """Whether these words name a model of the package: a folder of that name where the user is goes first."""
    return folder_of(said) is not None and not Path(said).exists()
