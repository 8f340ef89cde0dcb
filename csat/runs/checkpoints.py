"""Checkpoints that are either whole or not there, in the run folder (local or object store).

`checkpoints/step-00001200/{state.pt, cursor.json, quarantine.parquet}` is written first and `checkpoints/latest.json`, which
names it, last. Both a local rename and an object store's PUT replace that small file at once: a save that dies half-way
leaves the last good checkpoint in force. Nothing ever asks which folders exist. A store that fails is retried for half a
minute, see `files.insist`; then the save raises, and the workers start again from the last good checkpoint.

torch is loaded where tensors are read or written: whoever only asks how far a run is (`latest_cursor`) does without.
"""

from __future__ import annotations

import copy
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from csat.errors import ConfigError
from csat.runs.plan import Intervals
from csat.runs.quarantine import read_quarantine
from csat.runs.students import STUDENTS
from csat.storage import files

if TYPE_CHECKING:
    import torch
    from torch import nn

logger = logging.getLogger(__name__)


@dataclass
class Cursor:
    """Where a run is, in figures that every rank agrees on.

    Attributes:
        step: Optimiser steps taken.
        done: Positions of the plan that are trained, quarantined or filtered.
        counts: epoch → [trained, quarantined, filtered] tiles.
        meters: Sums over ranks and attempts, such as seconds spent waiting; see `loop.Meters`.
    """

    step: int = 0
    done: Intervals = field(default_factory=Intervals)
    counts: dict[int, list[int]] = field(default_factory=dict)
    meters: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"step": self.step, "done": self.done.pairs(), "counts": self.counts, "meters": self.meters})

    @classmethod
    def from_json(cls, text: str) -> Cursor:
        raw = json.loads(text)
        counts = {int(epoch): list(count) for epoch, count in raw["counts"].items()}
        return cls(step=raw["step"], done=Intervals(raw["done"]), counts=counts, meters=raw["meters"])


@dataclass
class Checkpoint:
    """Everything needed to resume."""

    cursor: Cursor
    state: dict[str, Any]  # tensors and plain values only: it is read back with weights_only=True
    quarantine: pa.Table

    def state_of(self, student: str | None) -> dict[str, Any]:
        """One student's of several; of the only one (None) it is the whole state."""
        return self.state if student is None else self.state[STUDENTS][student]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: URI of `checkpoints/` in the run folder.
        keep: How many to keep.
    """

    def __init__(self, folder: str, *, keep: int = 2):
        self.folder = folder
        self.keep = keep

    def check_fits(self, methods: nn.Module | Mapping[str | None, nn.Module]) -> None:
        """Whether the committed checkpoint, if any, can be resumed with the only method, or with each student's by its name.

        They stay as they are.

        Raises:
            ConfigError: it cannot, as `load_into` says.
        """
        if checkpoint := self.load():
            for student, method in methods.items() if isinstance(methods, Mapping) else [(None, methods)]:
                self.load_into(copy.deepcopy(method), checkpoint, student)

    def load_into(self, method: nn.Module, checkpoint: Checkpoint, student: str | None = None) -> None:
        """The checkpoint's weights into the method of a student.

        Raises:
            ConfigError: they are of networks that this version builds otherwise.
        """
        try:
            method.load_state_dict(checkpoint.state_of(student)["method"])
        except (ConfigError, RuntimeError) as error:
            raise ConfigError(
                f"the checkpoint in {self.folder} does not fit the networks of this version ({_briefly(error)}), and cannot "
                "be resumed: train again with another run_folder, or with overwrite=true"
            ) from error

    def latest_cursor(self) -> Cursor:
        """The cursor of the committed checkpoint; a fresh one where there is none."""
        record = self._latest()
        if record is None:
            return Cursor()
        return Cursor.from_json(_read(files.join(self.folder, record["name"], "cursor.json")).decode())

    def load(self, map_location: torch.device | str = "cpu") -> Checkpoint | None:
        """The committed checkpoint, or None."""
        record = self._latest()
        if record is None:
            return None
        import torch

        path = files.join(self.folder, record["name"])
        state = torch.load(io.BytesIO(_read(files.join(path, "state.pt"))), map_location=map_location, weights_only=True)
        cursor = Cursor.from_json(_read(files.join(path, "cursor.json")).decode())
        quarantine = read_quarantine(_read(files.join(path, "quarantine.parquet")))
        return Checkpoint(cursor, state, quarantine)

    def save(self, checkpoint: Checkpoint) -> str:
        """Write and commit. Returns the checkpoint's name."""
        import torch

        name = f"step-{checkpoint.cursor.step:08d}"
        path = files.join(self.folder, name)
        files.make_dir(path)
        state, quarantine = io.BytesIO(), io.BytesIO()
        torch.save(checkpoint.state, state)
        pq.write_table(checkpoint.quarantine, quarantine)
        _write(files.join(path, "state.pt"), state.getvalue())
        _write(files.join(path, "quarantine.parquet"), quarantine.getvalue())
        _write(files.join(path, "cursor.json"), checkpoint.cursor.to_json().encode())
        kept = [kept for kept in (self._latest() or {"kept": []})["kept"] if kept != name]
        kept, old = [name, *kept][: self.keep], [name, *kept][self.keep :]
        _write(files.join(self.folder, "latest.json"), json.dumps({"name": name, "kept": kept}).encode())
        for stale in old:
            try:
                files.delete(files.join(self.folder, stale))
            except (OSError, ValueError) as error:  # costs space, not correctness
                logger.warning("could not delete the old checkpoint %s: %s", stale, error)
        return name

    def _latest(self) -> dict[str, Any] | None:
        path = files.join(self.folder, "latest.json")
        return json.loads(_read(path)) if files.insist(lambda: files.exists(path)) else None


def _briefly(error: Exception, most: int = 200) -> str:
    """An error's text on one line; torch's names every tensor of a network."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]}…"


def _read(uri: str) -> bytes:
    return files.insist(lambda: files.read_bytes(uri))


def _write(uri: str, data: bytes) -> None:
    files.insist(lambda: files.write_bytes(uri, data))
