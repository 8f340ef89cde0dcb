"""metrics.jsonl, validation.jsonl and TensorBoard of one run, local or in a bucket, without doubled lines after a resume."""

import json
import tempfile
from pathlib import Path
from typing import Any

from csat.storage import files

FILES = ("metrics", "validation")


class Recorder:
    """Writes the figures of one run. Only rank 0 has one.

    A local run folder is appended to line by line. An object store has no appending: there the file is kept here and put up
    whole at each `sync` (each checkpoint), so its cost does not grow with the number of lines logged.

    Args:
        run_folder: URI of the run folder.
        last_step: The step of the checkpoint that the run resumes from; later lines belong to work that was lost.
    """

    def __init__(self, run_folder: str, *, last_step: int):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only rank 0 writes

        self.run_folder = run_folder
        self.tensorboard_uri = files.join(run_folder, "tensorboard")
        self.is_local = files.is_local(run_folder)
        scratch = None if self.is_local else tempfile.TemporaryDirectory(prefix="csat-record-")
        self._scratch = scratch
        tensorboard = Path(files.local_path(self.tensorboard_uri) if self.is_local else scratch.name)
        self.folder = Path(files.local_path(run_folder) if self.is_local else scratch.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            if lines := [line for line in read_metrics(run_folder, file) if line["step"] <= last_step]:
                (self.folder / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            else:
                (self.folder / f"{file}.jsonl").unlink(missing_ok=True)
        self._tensorboard = SummaryWriter(str(tensorboard), purge_step=last_step + 1)

    def log(self, figures: dict[str, Any], file: str = "metrics") -> None:
        """Append one line to one of `FILES`; numbers also go to TensorBoard, those of the validation below `validation/`."""
        with (self.folder / f"{file}.jsonl").open("a") as lines:
            lines.write(json.dumps(figures) + "\n")
        prefix = "" if file == "metrics" else f"{file}/"
        for name, value in figures.items():
            if isinstance(value, int | float) and name != "step":
                self._tensorboard.add_scalar(prefix + name, value, figures["step"])

    def sync(self) -> None:
        """Make what was logged so far visible in the run folder."""
        self._tensorboard.flush()
        if not self.is_local:
            for path in self.folder.glob("*.jsonl"):
                files.write_bytes(files.join(self.run_folder, path.name), path.read_bytes())
            for event_file in Path(self._scratch.name).glob("events.*"):
                files.write_bytes(files.join(self.tensorboard_uri, event_file.name), event_file.read_bytes())

    def close(self) -> None:
        self.sync()
        self._tensorboard.close()


def read_metrics(run_folder: str, file: str = "metrics") -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl, or of another of `FILES`; a line cut off by a kill is left out."""
    uri = files.join(run_folder, f"{file}.jsonl")
    if not files.exists(uri):
        return []
    lines = []
    for text in files.read_bytes(uri).decode().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
