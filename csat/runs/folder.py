"""The run folder: the same layout for every verb, local or in an object store.

config.yaml          resolved configuration; a rerun must match it
teacher.json         the teacher: name, weights' hash, licence, mpp, responses
manifest/            tiles (parquet), index.json, holdout/, quarantine.parquet of slides
checkpoints/         committed checkpoints, latest.json names the one in force
metrics.jsonl        one line per log interval
tensorboard/         the same figures for TensorBoard
precision.json       in which number format teacher and student compute, and why
plan.json            how the run is spread over the cluster, and how fast that should be
keeping.json         whether the teacher's responses are kept for later epochs, and what either way takes
throughput.json      what the run cost: rates per stage, waiting, memory, spilled bytes
accounting.json      manifest = trained + quarantined + filtered, by epoch
quarantine.parquet   every slide and tile that was not used, with the reason
exported/            the student: safetensors + config.json, backbone with timm's keys
evaluation.json      fidelity to the teacher (and to known nuclei) on held-out tiles
report.html          all of it for a person
students/NAME/       of a run with several: what is one student's own, laid out as a run with that one alone, see `students`
students.json        of such a run: what became of each, its fidelity and cost; students.html lays them beside each other
data.json            of a fine-tuning: classes, licences, parts and their groups; samples.csv and pretrain.csv list the images
validation.jsonl     of a fine-tuning: one line per validation
predictions/         of a fine-tuning: one parquet per part, one row per image
status.json          running, interrupted, failed (with the error) or finished
"""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import yaml

from csat.errors import ConfigError
from csat.settings import NAME, completed, free_keys, plain_settings
from csat.storage import files
from csat.words import some


class RunFolder:
    """One run's folder.

    Args:
        uri: Local path or object-store URI.
        setting: That gave it, for messages.
    """

    def __init__(self, uri: str, *, setting: str = "run_folder"):
        self.uri, self.setting = files.normalise(uri), setting

    def path(self, *parts: str) -> str:
        """URI of something in the folder."""
        return files.join(self.uri, *parts)

    def read_json(self, name: str) -> Any | None:
        """The named file's content; None where there is none."""
        path = self.path(name)
        found = files.insist(lambda: files.read_bytes(path) if files.exists(path) else None)
        return None if found is None else json.loads(found)

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        files.insist(lambda: files.write_bytes(self.path(name), text.encode()))

    def open(
        self,
        config: Any,
        *,
        overwrite: bool,
        as_before: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> bool:
        """Make the folder this run's own, or find that it already is.

        Args:
            config: The verb's configuration, resolved. A run of an earlier version, which lacks the settings that have come
                since, is resumed where these are at their defaults.
            overwrite: Delete a run of another configuration instead of refusing.
            as_before: Adds to the earlier configuration, in plain values, what it left to defaults that are others now.

        Returns:
            Whether an earlier attempt of the same run is resumed.

        Raises:
            StorageError: the folder cannot be written.
            ConfigError: it holds a run of another configuration (the difference is listed) or something else altogether.
        """
        files.check_writable(self.uri)
        earlier = self.config()
        if earlier is not None:
            earlier, now = as_before(completed(type(config), earlier)), plain_settings(config)
            differences = compare_configs(earlier, now, free=free_keys(type(config)))
            if not differences:
                self.write_config(config)
                return True
            if self.has_begun() and not overwrite:
                raise ConfigError(
                    f"{self.uri} holds a run of another configuration; it differs in\n  " + "\n  ".join(differences) + "\n"
                    f"Choose another {self.setting}, repeat the earlier settings to resume, or say overwrite=true to delete it"
                )
            files.delete(self.uri)
        elif others := [files.base_name(name) for name in files.list_dir(self.uri)]:
            raise ConfigError(
                f"{self.uri} is not empty and is no run folder (it holds {some(others, 4)}): choose an empty or new "
                f"{self.setting}"
            )
        files.make_dir(self.uri)
        self.write_config(config)
        return False

    def config(self) -> dict[str, Any] | None:
        """The configuration of the run that is here; None where there is none."""
        path = self.path("config.yaml")
        return yaml.safe_load(files.read_bytes(path)) if files.exists(path) else None

    def write_config(self, config: Any) -> None:
        """Record the verb's configuration."""
        self.write_text("config.yaml", yaml.safe_dump(plain_settings(config), sort_keys=False))

    def has_begun(self) -> bool:
        """Whether there is any work to lose: a run that was refused for its input may be repeated with other settings."""
        return files.exists(self.path("status.json"))

    def is_finished(self) -> bool:
        return (self.read_json("status.json") or {}).get("state") == "finished"

    def set_status(self, state: str, **details: Any) -> None:
        """`state` is running, interrupted, failed or finished."""
        self.write_json("status.json", {"state": state, **details})


def compare_configs(earlier: Mapping[str, Any], now: Mapping[str, Any], *, free: Collection[str] = ()) -> list[str]:
    """What differs between two resolved configurations, one line each, apart from `free` settings and what is below them."""
    before, after = _flatten(earlier), _flatten(now)
    return [
        f"{key}: was {before.get(key, 'not set')}, is {after.get(key, 'not set')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not any(_is_below(key, each) for each in free)
    ]


def _is_below(key: str, setting: str) -> bool:
    """Whether a key is that setting or part of it, whatever name stands where the setting says NAME."""
    parts, wanted = key.split("."), setting.split(".")
    return len(parts) >= len(wanted) and all(mine in (part, NAME) for part, mine in zip(parts, wanted, strict=False))


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
