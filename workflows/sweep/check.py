"""Everything about a sweep that can be known before a trial starts."""

from csat.errors import ConfigError, DatasetError, StorageError
from csat.labels.sets import LabelledData
from csat.sweeps.space import Dimension, corners
from workflows.finetuning.check import check
from workflows.shell import resources
from workflows.sweep.cells import Cell
from workflows.sweep.config import SweepConfig
from workflows.sweep.search import GROUP_DRIVER_CPUS


def check_cells(cells: list[Cell], space: tuple[Dimension, ...]) -> dict[str, LabelledData]:
    """Data, parts, metrics, models and where they start from, leakage.

    Returns:
        `data_key` → the data of the cells that have it.

    Raises:
        ConfigError, DatasetError, StorageError: names the cell, what is wrong and what to try.
    """
    data: dict[str, LabelledData] = {}
    # Settings of the model and the method show only when it is built whether they fit.
    builds_all = any(dimension.name.startswith(("model.", "method.")) for dimension in space)
    for cell in cells:
        try:
            for point in corners(space) if builds_all else corners(space)[:1]:
                data[cell.data_key] = check(cell.read(point), data.get(cell.data_key))
        except (ConfigError, DatasetError, StorageError) as error:
            raise type(error)(f"{cell.name}: {error}") from error
    return data


def check_resources(config: SweepConfig, cells: list[Cell]) -> None:
    """Whether the cluster can hold the trials of these cells. Raises ConfigError with the sums, and what to change."""
    for cell in cells:
        workers, is_group = cell.config.workers, cell.is_group
        resources.check_trials(
            max_concurrent=config.max_concurrent,
            cpus=GROUP_DRIVER_CPUS if is_group else config.cpus_per_trial,
            gpus=0.0 if is_group else config.gpus_per_trial,
            workers=workers if is_group else None,
        )
