"""The paraphrasers of a teacher's two tapped maps, and their folder: safetensors, and the hash of the teacher.

The folder holds `encoder.safetensors`, `decoder.safetensors` and `config.json`, which comes last. It names the teacher by the
hash of its weights: the factors of another teacher would be noise to the student.
"""

import json
from collections.abc import Sequence

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from csat.errors import ConfigError
from csat.model.networks.paraphraser import Paraphraser
from csat.storage import files

LAYERS = ("encoder", "decoder")  # the tapped maps, and the names of the responses that they come as


def make_paraphrasers(teacher_channels: Sequence[int], student_channels: Sequence[int]) -> nn.ModuleDict:
    """Fresh ones, frozen: channels of the encoder's and the decoder's map, on both sides."""
    pairs = zip(LAYERS, teacher_channels, student_channels, strict=True)
    return nn.ModuleDict({name: Paraphraser(theirs, ours) for name, theirs, ours in pairs}).requires_grad_(False)


def save_paraphrasers(paraphrasers: nn.ModuleDict, folder: str, *, teacher_sha256: str) -> None:
    """Write the folder; config.json comes last and marks it complete.

    Args:
        folder: URI.
        teacher_sha256: Hash of the weights of the teacher whose maps they learned.
    """
    files.make_dir(folder)
    files.delete(files.join(folder, "config.json"))
    for name, paraphraser in paraphrasers.items():
        tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in paraphraser.state_dict().items()}
        files.write_bytes(files.join(folder, f"{name}.safetensors"), save(tensors))
    config = {"teacher_sha256": teacher_sha256, "channels": _channels(paraphrasers)}
    files.write_bytes(files.join(folder, "config.json"), json.dumps(config, indent=2).encode())


def are_there(folder: str) -> bool:
    """Whether the folder holds paraphrasers."""
    return files.exists(files.join(folder, "config.json"))


def load_paraphrasers(paraphrasers: nn.ModuleDict, folder: str, *, teacher_sha256: str) -> None:
    """Put a folder's weights into paraphrasers.

    Args:
        paraphrasers: Of `make_paraphrasers`; stay frozen.
        folder: URI, of `save_paraphrasers`.
        teacher_sha256: Hash of the teacher whose maps they will see.

    Raises:
        ConfigError: nothing is there, they learned from another teacher, or for a student of other channels.
    """
    if not are_there(folder):
        raise ConfigError(f"there are no paraphrasers in {folder}: expected config.json and {LAYERS[0]}.safetensors in it")
    config = json.loads(files.read_bytes(files.join(folder, "config.json")))
    if config["teacher_sha256"] != teacher_sha256:
        raise ConfigError(
            f"the paraphrasers in {folder} learned from the teacher with the hash {config['teacher_sha256'][:16]}, and this "
            f"run's teacher has {teacher_sha256[:16]}: leave method.options.paraphrasers out to train some for this teacher, "
            "or name that teacher"
        )
    if config["channels"] != _channels(paraphrasers):
        raise ConfigError(
            f"the paraphrasers in {folder} are for channels {config['channels']} (teacher, student), and this run's models "
            f"have {_channels(paraphrasers)}: leave method.options.paraphrasers out to train some for this student"
        )
    for name, paraphraser in paraphrasers.items():
        uri = files.join(folder, f"{name}.safetensors")
        try:
            paraphraser.load_state_dict(load(files.read_bytes(uri)))
        except (SafetensorError, RuntimeError, FileNotFoundError) as error:
            raise ConfigError(f"cannot load the paraphraser {uri}: {error}") from error
    paraphrasers.requires_grad_(False)


def _channels(paraphrasers: nn.ModuleDict) -> dict[str, list[int]]:
    return {name: [each.channels, each.factor_channels] for name, each in paraphrasers.items()}
