"""The search space of a sweep: dotted settings of finetune.py, each with the values that a trial may give it.

search:
  train.optim.lr: {loguniform: [1.0e-4, 1.0e-2]}
  train.optim.weight_decay: {choice: [0.0, 0.05]}
  train.batch_size: {lograndint: [8, 64]}  # both ends included
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from csat.errors import ConfigError

RANGES = ("uniform", "loguniform", "randint", "lograndint")
KINDS = (*RANGES, "choice")
# What may be searched: what a model is and how it learns. A start says what it begins with, a data set what it learns from.
SEARCHABLE = ("model", "method", "train", "validation", "data.augment", "data.sampling")
NOT_SEARCHABLE = ("model.name", "model.init", "model.weights", "model.from_run", "train.seed")


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One setting that is searched.

    Attributes:
        name: Dotted setting of finetune.py.
        kind: One of `KINDS`.
        values: The choices, or the two ends of a range (both included).
    """

    name: str
    kind: str
    values: tuple[Any, ...]

    @property
    def is_log(self) -> bool:
        return self.kind.startswith("log")

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        if self.kind == "choice":
            return CategoricalDistribution(self.values)
        kind = IntDistribution if self.kind.endswith("randint") else FloatDistribution
        return kind(*self.values, log=self.is_log)


def read_space(search: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """The dimensions that settings describe. Raises ConfigError for what cannot be searched, or not like that."""
    return tuple(_dimension(str(name), spec) for name, spec in search.items())


def corners(space: tuple[Dimension, ...]) -> list[dict[str, Any]]:
    """Points at which every choice and both ends of every range occur: settings that hold there hold in between."""
    first = {dimension.name: dimension.values[0] for dimension in space}
    return [first, *({**first, dimension.name: value} for dimension in space for value in dimension.values[1:])]


def grid(space: tuple[Dimension, ...]) -> list[dict[str, Any]]:
    """Every combination of choices, the last setting changing fastest. Raises ConfigError for a range, which has no end."""
    if ranges := [dimension.name for dimension in space if dimension.kind != "choice"]:
        raise ConfigError(f"searcher grid tries all choices, and search.{ranges[0]} is a range: give {{choice: […]}}")
    names = [dimension.name for dimension in space]
    return [dict(zip(names, values, strict=True)) for values in product(*(dimension.values for dimension in space))]


def _dimension(name: str, spec: Any) -> Dimension:
    below = lambda names: any(name == other or name.startswith(other + ".") for other in names)  # noqa: E731
    if not below(SEARCHABLE) or below(NOT_SEARCHABLE):
        raise ConfigError(
            f"search.{name}: this setting cannot be searched. Search settings of {', '.join(SEARCHABLE)}, apart from "
            f"{', '.join(NOT_SEARCHABLE)}, which a start or the sweep decides"
        )
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise ConfigError(f"search.{name}: expected one of {', '.join(KINDS)} with its values, as {_example()}, not {spec!r}")
    kind, values = next(iter(spec.items()))
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"search.{name}: there is no {kind!r}.{hint} There are: {', '.join(KINDS)}")
    if not isinstance(values, list | tuple):
        raise ConfigError(f"search.{name}: {kind} takes a list, as {_example(kind)}, not {values!r}")
    return Dimension(name=name, kind=kind, values=_choices(name, values) if kind == "choice" else _range(name, kind, values))


def _choices(name: str, values: list[Any]) -> tuple[Any, ...]:
    wrong = [value for value in values if not isinstance(value, None | bool | int | float | str)]
    if wrong:
        raise ConfigError(f"search.{name}: a choice is a number, a word, true, false or null, not {wrong[0]!r}")
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated or not values:
        raise ConfigError(f"search.{name}: choice needs different values, as {_example('choice')}, not {values!r}")
    return tuple(values)


def _range(name: str, kind: str, values: list[Any]) -> tuple[Any, Any]:
    is_whole = kind.endswith("randint")
    ends = [_number(value) for value in values]
    if len(ends) != 2 or None in ends or (is_whole and any(end != int(end) for end in ends)):
        raise ConfigError(
            f"search.{name}: {kind} takes two {'whole ' if is_whole else ''}numbers, as {_example(kind)}, not {values!r}"
        )
    low, high = (int(end) if is_whole else end for end in ends)
    if not low < high:
        raise ConfigError(f"search.{name}: {kind} goes from a lower to a higher number, not from {low} to {high}")
    if kind.startswith("log") and not low > 0:
        raise ConfigError(f"search.{name}: {kind} needs positive numbers, not {low}; use {kind.removeprefix('log')}")
    return low, high


def _number(value: Any) -> float | None:
    """YAML reads 1e-4 (without a point) as a word."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _example(kind: str = "loguniform") -> str:
    values = {"choice": "[8, 16]", "randint": "[1, 8]", "lograndint": "[8, 64]", "uniform": "[0.0, 0.1]"}
    return f"{{{kind}: {values.get(kind, '[1.0e-4, 1.0e-2]')}}}"
