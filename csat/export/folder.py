"""The model of a run, as a folder that others can use; `csat/model/files.py` says what is in it."""

from typing import Any

from torch import Tensor

from csat.errors import ConfigError
from csat.methods.contract import Method
from csat.model.contract import Model
from csat.model.files import CONFIG, found_in, load_model, save_model
from csat.storage import files


def export_student(method: Method, state: dict[str, Tensor], folder: str, metadata: dict[str, Any]) -> None:
    """Write the student of a method.

    Args:
        method: Built as for training; its student takes the weights.
        state: Of the method, as in a checkpoint (averaged weights where there are any).
        folder: URI.
        metadata: JSON-ready; goes into config.json: what it saw and whom it learned from.
    """
    method.load_state_dict(state)
    save_model(method.part("student").eval(), folder, metadata)


def load_exported(run: str) -> Model:
    """The model of a run folder, or of an exported folder, local or remote; on the CPU, in evaluation mode.

    Raises:
        ConfigError: as `exported_folder` and `load_model`.
    """
    return load_model(exported_folder(run))


def exported_folder(run: str) -> str:
    """The exported model of a run folder, or the folder itself where it is an exported one.

    Raises:
        ConfigError: neither; says whether a run is there that has not finished.
    """
    inside = files.join(run, "exported")
    if files.exists(files.join(inside, CONFIG)):
        return inside
    if files.exists(files.join(run, CONFIG)):
        return run
    if files.exists(files.join(run, "config.yaml")):
        raise ConfigError(f"the run {run} has not exported its model yet: let it finish (the same command resumes it)")
    raise ConfigError(
        f"{run} is neither a run folder nor an exported model: expected exported/{CONFIG} or {CONFIG} in it ({found_in(run)})"
    )
