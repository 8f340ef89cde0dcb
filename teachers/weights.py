"""Reading a weights file without running code from it, and loading it strictly with errors that say what is wrong."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from csat.errors import TeacherError
from csat.words import some

WRAPPERS = (
    "desc",
    "state_dict",
    "model_state_dict",
    "model",
)  # keys under which trainers put the tensors; "desc" is HoVer-Net's
PREFIX = "module."  # left by torch's DataParallel


def read_state_dict(path: Path, *, teacher: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    A safetensors file, or a torch file read with `weights_only=True`: nothing in it is unpickled but tensors and plain
    containers. Flat, or wrapped in a dictionary under one of `WRAPPERS`; a leading `module.` is stripped.

    Raises:
        TeacherError: the file is no checkpoint, holds code, or holds no tensors.
    """
    try:
        is_safe = path.suffix == ".safetensors"
        content = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"teacher {teacher!r}: {path} holds more than tensors, and loading it would run code from it "
            f"({_first_line(error)}). If you trust it, convert it once, elsewhere: "
            "torch.save(torch.load(old, weights_only=False)['state_dict'], new)"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise TeacherError(
            f"teacher {teacher!r}: {path} ({path.stat().st_size} bytes) is not a readable checkpoint: {_first_line(error)}. "
            "Expected a safetensors file or a torch.save of a state_dict; download it again, or see whether it is a web page"
        ) from error
    tensors = _unwrap(content)
    if not tensors:
        found = (
            f"a dictionary with the keys {some(content, 3)}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        )
        raise TeacherError(
            f"teacher {teacher!r}: {path} holds {found}; expected a state_dict, flat or under one of: {', '.join(WRAPPERS)}"
        )
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, teacher: str, path: Path, hint: str) -> None:
    """Fill a module: every name and every shape must agree.

    Args:
        hint: What to try where they do not, for the message.

    Raises:
        TeacherError: with the counts and the first few of the missing, the unexpected and the misshaped tensors.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    misshaped = [
        f"{name} {list(state[name].shape)} (expected {list(wanted[name].shape)})"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if missing or unexpected or misshaped:
        parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        found = "; ".join(f"{len(names)} {what}: {some(names, 3)}" for what, names in parts if names)
        raise TeacherError(
            f"teacher {teacher!r}: {path.name} ({len(state)} tensors) does not fit the network ({len(wanted)}): "
            f"{found}. {hint}"
        )
    module.load_state_dict(state, strict=True)


def sha256_of_tensors(module: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and values of a module's tensors: its identity where no single file holds them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unwrap(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _unwrap(content[key])
    are_tensors = all(isinstance(value, Tensor) for value in content.values())
    return dict(content) if are_tensors else {}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
