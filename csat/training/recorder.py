"""metrics.jsonl and TensorBoard of one run, local or in an object store, without doubled lines after a resume."""

import json
import tempfile
from pathlib import Path
from typing import Any

from csat.data import storage


class Recorder:
    """Writes the figures of one run. Only rank 0 has one.

    A local run folder is appended to line by line. An object store has no appending: there the file is kept here and put up
    whole at each `sync` (each checkpoint), so its cost does not grow with the number of lines logged.

    Args:
        run_folder: URI of the run folder.
        last_step: The step of the checkpoint that the run goes on from; later lines belong to work that was lost.
    """

    def __init__(self, run_folder: str, *, last_step: int):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only rank 0 writes

        self.uri = storage.join(run_folder, "metrics.jsonl")
        self.tensorboard_uri = storage.join(run_folder, "tensorboard")
        self.is_local = storage.is_local(run_folder)
        scratch = None if self.is_local else tempfile.TemporaryDirectory(prefix="csat-record-")
        self._scratch = scratch
        tensorboard = Path(storage.local_path(self.tensorboard_uri) if self.is_local else scratch.name)
        self.path = Path(storage.local_path(self.uri)) if self.is_local else Path(scratch.name) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(
            "".join(json.dumps(line) + "\n" for line in read_metrics(run_folder) if line["step"] <= last_step)
        )
        self._tensorboard = SummaryWriter(str(tensorboard), purge_step=last_step + 1)

    def log(self, figures: dict[str, Any]) -> None:
        """Append one line; numbers also go to TensorBoard under their name."""
        with self.path.open("a") as file:
            file.write(json.dumps(figures) + "\n")
        for name, value in figures.items():
            if isinstance(value, int | float) and name != "step":
                self._tensorboard.add_scalar(name, value, figures["step"])

    def sync(self) -> None:
        """Make what was logged so far visible in the run folder."""
        self._tensorboard.flush()
        if not self.is_local:
            storage.write_bytes(self.uri, self.path.read_bytes())
            for event_file in Path(self._scratch.name).glob("events.*"):
                storage.write_bytes(storage.join(self.tensorboard_uri, event_file.name), event_file.read_bytes())

    def close(self) -> None:
        self.sync()
        self._tensorboard.close()


def read_metrics(run_folder: str) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl; a line cut off by a kill is left out."""
    uri = storage.join(run_folder, "metrics.jsonl")
    if not storage.exists(uri):
        return []
    lines = []
    for text in storage.read_bytes(uri).decode().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
