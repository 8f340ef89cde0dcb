"""Which teachers there are. A new one is its file and one line in `TEACHERS`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from csat.errors import ConfigError
from csat.responses import TeacherSpec
from csat.settings import places_in, read_settings, resolve
from csat.shipped import also, is_shipped
from csat.storage import files
from teachers.contract import PRECISION, Teacher

# name → (options dataclass, loader), as "module:attribute": importing the registry imports no teacher and no model library.
# The objects themselves are accepted in place of the strings.
TEACHERS: dict[str, tuple[str | type, str | Callable[..., Teacher]]] = {
    "stain": ("teachers.stain:StainOptions", "teachers.stain:load"),
    "hovernet": ("teachers.hovernet:HoverNetOptions", "teachers.hovernet:load"),
    "timm": ("teachers.timm_encoder:TimmOptions", "teachers.timm_encoder:load"),
    "ara_cnn": ("teachers.ara_cnn:AraCnnOptions", "teachers.ara_cnn:load"),
    "torchscript": ("teachers.torchscript:TorchScriptOptions", "teachers.torchscript:load"),
    "run": ("teachers.trained:RunOptions", "teachers.trained:load"),
}
RUN = "run"  # the teacher whose weights are a run folder, which may stand in the place of a name


def load_teacher(
    name: str,
    weights: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
    wanted: Sequence[str] | None = None,
) -> Teacher:
    """Load a teacher by name.

    Args:
        name: Key of `TEACHERS`, the folder of a run of finetune.py, or a teacher that comes with the package.
        weights: File of weights, local or remote; None for a teacher that needs none.
        options: Fields of the teacher's options dataclass, as from a YAML recipe; the rest keep their defaults.
        device: Where it runs, as torch names it ("cpu", "cuda").
        wanted: The responses that will be used; None for all of them.

    Raises:
        ConfigError: unknown teacher, unknown option, or a value of the wrong type; lists the valid ones.
        TeacherError: the weights do not fit, or a wanted response does not exist.
    """
    name, weights = find_teacher(name, weights)
    options = build_options(name, options)
    _, loader = TEACHERS[name]
    return resolve(loader)(options, weights=weights, device=device, wanted=wanted)


def describe_teacher(name: str, weights: str | None = None, options: Mapping[str, Any] | None = None) -> TeacherSpec:
    """What a teacher would answer, without keeping it: it is loaded on the CPU, checked, and let go.

    Raises:
        ConfigError, TeacherError: as `load_teacher`. So the driver meets a wrong weights file before any actor starts.
    """
    return load_teacher(name, weights, options, device="cpu").spec


def find_teacher(name: str, weights: str | None = None) -> tuple[str, str | None]:
    """Key of `TEACHERS` and weights, where the folder of a run, or the name of a model of the package, may stand for a name.

    Returns:
        `("run", folder)` for a folder, in one spelling wherever it is looked at from; `("run", name)` for a model of the
        package, which lies elsewhere on every node; else the two as given.

    Raises:
        ConfigError: neither a name nor a folder; lists the names.
    """
    if name in TEACHERS:
        return name, _normalised(weights) if name == RUN and weights else weights
    if not is_shipped(name) and not files.is_dir(name):
        raise ConfigError(
            f"there is no teacher {name!r}; there are: {', '.join(TEACHERS)}. The folder of a run of finetune.py, local or "
            f"s3://, is a teacher too, and there is no such folder{also()}"
        )
    if weights is not None:
        raise ConfigError(f"teacher {name!r} has its own weights: leave out the weights {weights}")
    return RUN, _normalised(name)


def _normalised(run: str) -> str:
    return run if is_shipped(run) else files.normalise(run)


def with_places(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a teacher with every path absolute, see `csat.settings`: the actors that load it are in other folders."""
    return places_in(resolve(TEACHERS[name][0]), options) if name in TEACHERS else dict(options)


def has_precision(name: str) -> bool:
    """Whether a teacher, by name or the folder of a run, computes in either number format: its option `precision` says."""
    options, _ = TEACHERS[name if name in TEACHERS else RUN]
    return PRECISION in {field.name for field in fields(resolve(options))}


def build_options(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """The options dataclass of a teacher, filled from a plain mapping, with types checked and converted as in a recipe.

    Raises:
        ConfigError: naming what was not understood and what would be.
    """
    if name not in TEACHERS:
        raise ConfigError(f"there is no teacher {name!r}; there are: {', '.join(TEACHERS)}")
    return read_settings(resolve(TEACHERS[name][0]), options, what=f"options of teacher {name!r}")
