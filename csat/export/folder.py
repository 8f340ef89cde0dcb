"""The model of a run, as a folder that others can use; `csat/model/files.py` says what is in it."""

from typing import Any

from torch import Tensor

from csat.methods.contract import Method
from csat.model.files import save_model


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
