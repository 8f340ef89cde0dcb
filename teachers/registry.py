"""Which teachers there are. A new one is its file and one line in `TEACHERS`."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from csat.errors import ConfigError
from csat.responses import TeacherSpec
from csat.settings import read_settings
from teachers.contract import Teacher

# name → (options dataclass, loader), as "module:attribute": importing the registry imports no teacher and no model library.
# The objects themselves are accepted in place of the strings.
TEACHERS: dict[str, tuple[str | type, str | Callable[..., Teacher]]] = {
    "stain": ("teachers.stain:StainOptions", "teachers.stain:load"),
    "hovernet": ("teachers.hovernet:HoverNetOptions", "teachers.hovernet:load"),
    "timm": ("teachers.timm_encoder:TimmOptions", "teachers.timm_encoder:load"),
    "torchscript": ("teachers.torchscript:TorchScriptOptions", "teachers.torchscript:load"),
}


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
        name: Key of `TEACHERS`.
        weights: File of weights, local or remote; None for a teacher that needs none.
        options: Fields of the teacher's options dataclass, as from a YAML recipe; the rest keep their defaults.
        device: Where it runs, as torch names it ("cpu", "cuda").
        wanted: The responses that will be used; None for all of them.

    Raises:
        ConfigError: unknown teacher, unknown option, or a value of the wrong type; lists the valid ones.
        TeacherError: the weights do not fit, or a wanted response does not exist.
    """
    options = build_options(name, options)
    _, loader = TEACHERS[name]
    return _resolve(loader)(options, weights=weights, device=device, wanted=wanted)


def describe_teacher(name: str, weights: str | None = None, options: Mapping[str, Any] | None = None) -> TeacherSpec:
    """What a teacher would answer, without keeping it: it is loaded on the CPU, checked, and let go.

    Raises:
        ConfigError, TeacherError: as `load_teacher`. So the driver meets a wrong weights file before any actor starts.
    """
    return load_teacher(name, weights, options, device="cpu").spec


def build_options(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """The options dataclass of a teacher, filled from a plain mapping, with types checked and converted as in a recipe.

    Raises:
        ConfigError: naming what was not understood and what would be.
    """
    if name not in TEACHERS:
        raise ConfigError(f"there is no teacher {name!r}; there are: {', '.join(TEACHERS)}")
    return read_settings(_resolve(TEACHERS[name][0]), options, what=f"options of teacher {name!r}")


def _resolve(reference: str | Any) -> Any:
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
