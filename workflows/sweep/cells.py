"""The cells of a sweep: every data set from every start, each with the settings of finetune.py that its runs share."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from csat.errors import ConfigError
from csat.labels.datasets.registry import with_places as with_layout_places
from csat.settings import merge, plain_settings, unfold, with_places
from csat.storage import files
from csat.sweeps.space import Dimension, corners, grid
from csat.sweeps.study import GRID
from workflows.finetuning.config import FinetuneConfig, read_config
from workflows.sweep.config import SweepConfig

OWN = ("run_folder", "overwrite", "prepare_only", "neighbours_only", "ray")  # settings of finetune.py that the sweep gives
# Data settings that change nothing about what is decoded: trials that differ in them share the decoded images.
AFTER_DECODING = ("augment", "sampling")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One data set from one start.

    Attributes:
        folder: URI of the cell's folder.
        settings: Nested settings of finetune.py, all but the searched ones and the run folder.
        num_trials: Of its search; 0: it has none.
        num_seeds: Runs with the best setting; 0: it is searched for others alone.
        leader: Name of the cell whose search chooses for this one; None: its own.
    """

    data_set: str
    start: str
    folder: str
    settings: dict[str, Any] = field(repr=False)
    num_trials: int = 0
    num_seeds: int = 1
    leader: str | None = None

    @property
    def num_runs(self) -> int:
        return self.num_trials + self.num_seeds

    @property
    def is_group(self) -> bool:
        """Whether the training of one run is a group of workers beside its process."""
        return self.config.workers.num_workers > 1

    @property
    def name(self) -> str:
        return name_of(self.data_set, self.start)

    @cached_property
    def config(self) -> FinetuneConfig:
        """What its runs have in common; searched settings have the values that finetune.py or the recipe gives them."""
        return self.read({})

    @cached_property
    def data_key(self) -> str:
        """Equal for cells that train on the same decoded images."""
        data = {name: value for name, value in asdict(self.config.data).items() if name not in AFTER_DECODING}
        return json.dumps(data, sort_keys=True)

    def run_settings(self, params: Mapping[str, Any], run_folder: str) -> dict[str, Any]:
        """All settings of one run of the cell. `params`: dotted searched setting → value."""
        return merge(self.settings, unfold(params), {"run_folder": run_folder})

    def read(self, params: Mapping[str, Any]) -> FinetuneConfig:
        """What a run with these searched values would do. Raises ConfigError that names the cell."""
        try:
            return read_config(self.run_settings(params, self.folder))
        except ConfigError as error:
            raise type(error)(f"{self.name}: {error}") from error


def name_of(data_set: str, start: str) -> str:
    """What a cell is called."""
    return f"{data_set} x {start}"


def make_cells(config: SweepConfig, space: tuple[Dimension, ...]) -> list[Cell]:
    """All cells of a sweep, data set by data set, settings checked at every corner of the search space.

    Raises:
        ConfigError: a name that cannot be a folder, settings that cannot work; names the cell.
    """
    for what, names in (("data_sets", config.data_sets), ("starts", config.starts)):
        if not names:
            raise ConfigError(f"{what} is empty: give at least one NAME with settings of finetune.py")
        for name, settings in names.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", str(name)):
                raise ConfigError(f"{what}.{name}: a name becomes a folder: use letters, digits, _ and -")
            _check_mapping(f"{what}.{name}", settings)
    _check_mapping("base", config.base)
    num_trials = len(grid(space)) if config.searcher == GRID else config.num_trials
    cells = []
    for data_set, data_settings in config.data_sets.items():
        leader = config.settings_from.get(data_set)
        for start, start_settings in config.starts.items():
            settings = merge(unfold(config.base), unfold(data_settings), unfold(start_settings))
            settings = merge(_below(config.data_root, settings), _resources(settings, config))
            folder = files.join(config.run_folder, "cells", data_set, start)
            cell = Cell(
                data_set=str(data_set),
                start=str(start),
                folder=folder,
                settings=settings,
                num_trials=num_trials if space and leader is None else 0,
                num_seeds=0 if data_set in config.search_only else config.final_seeds,
                leader=None if leader is None else name_of(leader, str(start)),
            )
            cell = replace(cell, settings=plain_settings(with_places(cell.config)))
            for point in corners(space):
                run = cell.read(point)
                run.train.rows_per_worker(run.workers.num_workers)
            cells.append(cell)
    return cells


def choose_cells(cells: Sequence[Cell], *, done: Collection[str], only: Collection[str]) -> list[Cell]:
    """The cells that are worked at now, in an order in which each comes after the one that is searched for it.

    Args:
        done: Names of cells.
        only: Data sets that are asked for; none: all.

    Raises:
        ConfigError: a data set is asked for without the one that is searched for it.
    """
    left = [cell for cell in cells if cell.name not in done]
    chosen = [cell for cell in left if not only or cell.data_set in only]
    names = {*done, *(cell.name for cell in chosen)}
    for cell in chosen:
        if cell.leader is not None and cell.leader not in names:
            leader = next(other.data_set for other in left if other.name == cell.leader)
            raise ConfigError(
                f"only asks for {cell.data_set}, whose setting {leader} is searched for, and that has not been done: add "
                f"{leader} to only"
            )
    return sorted(chosen, key=lambda cell: cell.leader is not None)


def group_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells whose runs may go side by side: of the same decoded data, none chosen for by another of them."""
    groups: dict[tuple[bool, bool, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.leader is not None, cell.is_group, cell.data_key), []).append(cell)
    return list(groups.values())


def _check_mapping(name: str, settings: Any) -> None:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{name} is a mapping of settings of finetune.py, not {settings!r}")
    if own := [key for key in OWN if key in settings]:
        raise ConfigError(f"{name}.{own[0]}: the sweep gives this setting to its runs: leave it out")


def _below(data_root: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a cell, relative places of its data sets in that folder."""
    data = settings.get("data")
    sets = data.get("sets") if isinstance(data, Mapping) else None
    if data_root is None or not isinstance(sets, Mapping):
        return settings
    return merge(settings, {"data": {"sets": {name: _set_below(data_root, name, value) for name, value in sets.items()}}})


def _set_below(data_root: str, name: str, value: Any) -> Any:
    if isinstance(value, Mapping) and "path" in value:
        options = value.get("options")
        more = {"options": _options_below(data_root, value.get("layout") or name, options)} if options else {}
        return {**value, "path": _set_below(data_root, name, value["path"]), **more}
    return files.join(data_root, value) if isinstance(value, str) else value


def _options_below(data_root: str, layout: str, options: Any) -> Any:
    """Options of a layout, those that are relative places in that folder: what `with_places` would make absolute."""
    if not isinstance(options, Mapping):
        return options
    placed = with_layout_places(layout, options)
    is_relative = {name: isinstance(value, str) and value != placed[name] for name, value in options.items()}
    return {name: files.join(data_root, value) if is_relative[name] else value for name, value in options.items()}


def _resources(settings: dict[str, Any], config: SweepConfig) -> dict[str, Any]:
    """A trial that trains in its own process uses what the sweep gives it."""
    workers = settings.get("workers")
    if isinstance(workers, Mapping) and workers.get("num_workers", 1) != 1:
        return {}
    return {"workers": {"cpus_per_worker": config.cpus_per_trial, "gpus_per_worker": config.gpus_per_trial}}
