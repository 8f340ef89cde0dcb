"""An ONNX file of export.py that answers tiles, through onnxruntime alone: no network of this project is built.

What the file says of itself stands in its metadata, see `csat.export.onnx`.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf

from csat.errors import ConfigError
from csat.prediction.answers import About, classes_of, task_of
from csat.responses import spec_from_json
from csat.storage import files

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
NOT_ONNX = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf)


class OnnxAnswers:
    """See `csat.prediction.answers.Answers`.

    Args:
        place: The file, a path or a URI.
        tile_px: Edge of the tiles; only the one that the file was made for.
        device: cpu, or cuda where onnxruntime has that.
        threads: On the CPU; None: as many as there are cores.

    Raises:
        ConfigError: no ONNX file, one of another program, another tile size, a device that onnxruntime lacks.
    """

    def __init__(self, place: str, *, tile_px: int | None = None, device: str = "cpu", threads: int | None = None):
        self.session = _session(place, str(device), threads)
        about = self.session.get_modelmeta().custom_metadata_map
        if "responses" not in about:
            raise ConfigError(
                f"{place} is an ONNX file of another program: it does not say what it answers. Expected one of export.py, "
                "whose metadata have responses, tile_px, mean, std, mpp"
            )
        said = {name: json.loads(about[name]) for name in ("responses", "tile_px", "mean", "std", "mpp")}
        self.specs = tuple(map(spec_from_json, said["responses"]))
        self.tile_px, self.mpp = said["tile_px"], said["mpp"]
        if tile_px not in (None, self.tile_px):
            raise ConfigError(f"{place} was made for tiles of {self.tile_px} px, not of {tile_px}: leave tile_px out")
        self.task, self.classes = task_of(self.specs), classes_of(self.specs)
        self.about = About(name=files.base_name(place), source=place, licence=about["licence"], sha256=about["sha256"])
        self.mean, self.std = (np.array(said[name], np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
        (self._input,) = [each.name for each in self.session.get_inputs()]

    def answer(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        images = (tiles.transpose(0, 3, 1, 2).astype(np.float32) / 255 - self.mean) / self.std
        names = [spec.name for spec in self.specs]
        values = self.session.run(names, {self._input: np.ascontiguousarray(images)})
        return {name: np.asarray(value, np.float32) for name, value in zip(names, values, strict=True)}


def _session(place: str, device: str, threads: int | None) -> onnxruntime.InferenceSession:
    provider = PROVIDERS.get(device.partition(":")[0])
    if provider not in onnxruntime.get_available_providers():
        have = ", ".join(onnxruntime.get_available_providers())
        raise ConfigError(f"onnxruntime does not run on {device} here; it has {have}: say cpu, or install onnxruntime-gpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # warnings are about what it could not optimise
    if files.info(place) is None:
        raise ConfigError(f"there is no file {place}")
    with tempfile.TemporaryDirectory(prefix="csat-onnx-") as scratch:
        path = files.local_path(place) if files.is_local(place) else Path(scratch) / "model.onnx"
        if not files.is_local(place):
            files.download(place, path)
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except NOT_ONNX as error:
            raise ConfigError(f"{place} is not an ONNX file that onnxruntime can read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
