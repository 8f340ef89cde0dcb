"""A model as files, local or remote: safetensors, and a config.json that comes last and marks the folder complete.

| model | files |
|---|---|
| student (csat, any timm backbone) | `student.safetensors`, and for timm `model.safetensors`, see `csat/model/timm_form.py` |
| hovernet | `hovernet.safetensors` (the published tensor names: teacher hovernet loads it) |
| any other | `model.safetensors` |

Folders of earlier versions have `backbone.safetensors` (timm's names) in the place of a student's `model.safetensors`.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from csat.errors import ConfigError
from csat.model.contract import Model
from csat.model.registry import STUDENT, find_model
from csat.model.timm_form import WEIGHTS
from csat.responses import spec_from_json
from csat.runs.folder import RunFolder
from csat.runs.students import STUDENTS
from csat.shipped import also, folder_of
from csat.storage import files
from csat.words import some

FORMAT_VERSION = 1
CONFIG = "config.json"
EXPORTED = "exported"  # the folder in a run that holds its model
LEAST_HALVED = 1024  # numbers of a tensor from which half precision saves something


def save_model(model: Model, folder: str, metadata: dict[str, Any], *, is_small: bool = False) -> None:
    """Write a model's folder.

    Args:
        model: On any device.
        folder: URI; made if it is not there.
        metadata: JSON-ready: mpp, tile_px, the teacher, licences.
        is_small: Large tensors in half precision, and nothing for timm.
    """
    description, form = model.describe(), None if is_small else model.in_timm(metadata)
    header = {"backbone": description["backbone"]} if "backbone" in description else None
    files.make_dir(folder)
    files.delete(files.join(folder, CONFIG))  # of an earlier export: until all is written there is no model
    for name, state in {**model.state(), **({WEIGHTS: form.tensors} if form else {})}.items():
        # Plain contiguous copies: safetensors refuses other strides and tensors that share memory.
        tensors = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
        tensors = {key: _halved(tensor) if is_small else tensor for key, tensor in tensors.items()}
        files.write_bytes(files.join(folder, name), save(tensors, metadata=header))
    for name, text in (form.sources if form else {}).items():
        files.write_bytes(files.join(folder, name), text.encode())
    responses = [asdict(spec) for spec in model.responses]
    config = {"format": FORMAT_VERSION, **description, "responses": responses, "metadata": metadata}
    config |= form.config if form else {}
    files.write_bytes(files.join(folder, CONFIG), (json.dumps(config, indent=2) + "\n").encode())


def load_model(folder: str) -> Model:
    """The model of a folder, on the CPU, in evaluation mode. Random numbers stay as they are.

    Raises:
        ConfigError: not a model's folder, an incomplete one, a kind that is not known, weights that do not fit.
    """
    with local_copy(folder) as copy:
        config = read_model_config(str(copy))
        model_class = _class_of(config, folder)
        with torch.random.fork_rng(devices=[]):
            model = model_class.from_description(config, [spec_from_json(spec) for spec in config["responses"]])
        path = copy / model.weights_file
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"cannot load the weights of {folder}, {path.name}: {error}") from error
        try:
            model.load_state(tensors)
        except ConfigError as error:  # a network says what is wrong with them
            raise ConfigError(f"cannot load the weights of {folder}: {error}") from error
        except RuntimeError as error:
            raise ConfigError(_describe_misfit(model, tensors, folder)) from error
    return model.eval()


@contextmanager
def local_copy(folder: str) -> Iterator[Path]:
    """A local folder with the config.json and the weights of a model's folder: that folder itself, or a temporary copy.

    Raises:
        ConfigError: the folder holds no model, or one whose weights are missing.
    """
    config = read_model_config(folder)
    if files.is_local(folder):
        yield files.local_path(folder)
        return
    name = weights_name(config)
    weights = files.join(folder, name)
    if files.info(weights) is None:
        raise ConfigError(f"the exported model {folder} is incomplete: there is no {name} in it")
    with tempfile.TemporaryDirectory(prefix="csat-model-") as scratch:
        files.download(weights, Path(scratch) / name)
        (Path(scratch) / CONFIG).write_text(json.dumps(config))
        yield Path(scratch)


def read_model_config(folder: str) -> dict[str, Any]:
    """`config.json` of a model's folder. Raises ConfigError where there is none, or one of another program."""
    uri = files.join(folder, CONFIG)
    if not files.exists(uri):
        raise ConfigError(f"{folder} is no exported model: there is no {CONFIG} in it ({found_in(folder)})")
    try:
        config = json.loads(files.read_bytes(uri))
    except ValueError as error:
        raise ConfigError(f"{uri} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT_VERSION or "responses" not in config:
        raise ConfigError(f"{uri} does not describe a model of format {FORMAT_VERSION}: was it written by another program?")
    return config


def weights_name(config: dict[str, Any]) -> str:
    """Name of the weights file of a model, by its config.json. Raises ConfigError for a kind that is not known."""
    return _class_of(config, "config.json").weights_file


def sha256_of_weights(folder: Path, config: dict[str, Any]) -> str:
    """SHA-256 of the weights file of a local copy, in hexadecimal: what identifies the model."""
    with open(folder / weights_name(config), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_exported(run: str) -> Model:
    """The model of a run folder, or of an exported folder, local or remote; on the CPU, in evaluation mode.

    Raises:
        ConfigError: as `exported_folder` and `load_model`.
    """
    return load_model(exported_folder(run))


def exported_folder(run: str) -> str:
    """The exported model of a run folder, the folder itself where it is an exported one, or that of a student of the package.

    Raises:
        ConfigError: neither; says whether a run is there that has not finished.
    """
    if shipped := folder_of(run):
        return shipped
    inside = files.join(run, EXPORTED)
    if files.exists(files.join(inside, CONFIG)):
        return inside
    if files.exists(files.join(run, CONFIG)):
        return run
    if students := [files.parent(each) for each in files.glob(files.join(run, STUDENTS, "*", "config.yaml"))]:
        raise ConfigError(f"the run {run} has several students: choose one of {', '.join(students)}")
    if files.exists(files.join(run, "config.yaml")):
        status = RunFolder(run).read_json("status.json") or {}
        if status.get("state") == "failed":
            raise ConfigError(f"the run {run} has failed and left no model: {status.get('error')}")
        raise ConfigError(f"the run {run} has not exported its model yet: let it finish (the same command resumes it)")
    raise ConfigError(
        f"{run} is neither a run folder nor an exported model: expected exported/{CONFIG} or {CONFIG} in it ({found_in(run)})"
        f"{also()}"
    )


def found_in(folder: str, most: int = 8) -> str:
    """What a folder holds, for a message."""
    if not files.is_dir(folder):
        return "there is no such folder"
    return f"it holds {some(map(files.base_name, files.list_dir(folder)), most)}"


def _halved(tensor: Tensor) -> Tensor:
    """A large tensor of floats in half precision; what is small, such as a normalisation, keeps its digits."""
    return tensor.half() if tensor.is_floating_point() and tensor.numel() >= LEAST_HALVED else tensor


def _class_of(config: dict[str, Any], folder: str) -> type[Model]:
    """A student's config.json names no kind: there were no others once, and others read these files."""
    kind = config.get("model", STUDENT)
    try:
        return find_model(kind)
    except ConfigError as error:
        raise ConfigError(f"{folder} holds a model of another kind: {error}") from error


def _describe_misfit(model: Model, tensors: dict[str, Tensor], folder: str) -> str:
    own = model.state()[model.weights_file]
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    misshaped = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    return (
        f"{model.weights_file} of {folder} does not fit a {model.noun}: {len(missing)} weights missing {missing[:3]}, "
        f"{len(unexpected)} unexpected {unexpected[:3]}, {len(misshaped)} misshaped {misshaped[:3]}: is its {CONFIG} from "
        "another folder?"
    )
