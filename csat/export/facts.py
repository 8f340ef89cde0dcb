"""What is known of a model when it is exported: what its run has written, and what export.py has measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csat.errors import ConfigError
from csat.licences import forbids_commerce, forbids_derivatives, licences_of
from csat.model.files import EXPORTED
from csat.runs.folder import RunFolder
from csat.runs.students import manifest_of
from csat.storage import files


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run says of its model, as far as it does: all of it JSON, and empty where there is no such file.

    Attributes:
        config: config.json of the exported folder.
        teacher: teacher.json of a pretraining, or what a fine-tuning says of the teacher beside its labels.
        evaluation: evaluation.json.
        data: data.json of a fine-tuning.
        slides: How many slides a pretraining saw, and its tiles.
        judged: What evaluate.py has found on other images, see `read_judged`.
    """

    config: dict[str, Any]
    teacher: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    slides: dict[str, Any] = field(default_factory=dict)
    judged: dict[str, Any] = field(default_factory=dict)

    @property
    def teachers(self) -> dict[str, dict[str, Any]]:
        """Every teacher by its name in the run, the only one by ""; none where there is none."""
        members, named = self.teacher.get("members"), self.teacher.get("teachers")
        if members:  # teacher.json
            return {each["name"]: each["spec"] for each in members}
        return dict(named) if named else {"": self.teacher} if self.teacher else {}

    @property
    def metadata(self) -> dict[str, Any]:
        return self.config.get("metadata") or {}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What export.py has found out.

    Attributes:
        cost: params, macs of one tile.
        speeds: What was measured → tiles per second, and `machine`: on what.
        files: Name → what it is and how it was checked, one line each.
        left_out: Name → why a file that was asked for is not there.
        tiles: Where the tiles are from that files were tried with.
    """

    cost: dict[str, float]
    speeds: dict[str, float]
    machine: str
    files: dict[str, str]
    left_out: dict[str, str]
    tiles: str


def read_facts(run: str, config: dict[str, Any], *, judged: str | None = None, licence: str | None = None) -> Facts:
    """Of a run folder; of an exported folder alone there is only its config.json.

    Args:
        run: The folder.
        config: Its config.json.
        judged: Run folder of evaluate.py in which this model is judged on other images.
        licence: Of the images, where the run does not know it: that of a pretraining cannot.

    Raises:
        ConfigError: there is no such evaluation; the run knows the licence.
    """
    folder, metadata = RunFolder(run), config.get("metadata") or {}
    if licence:
        if known := metadata.get("licence"):
            raise ConfigError(f"licence: the run knows that of its images: {known}. Leave licence out")
        metadata = {**metadata, "licence": licence}
        config = {**config, "metadata": metadata}
    index = RunFolder(manifest_of(folder.uri)).read_json("index.json") or {}
    return Facts(
        config=config,
        teacher=folder.read_json("teacher.json") or metadata.get("teacher") or {},
        evaluation=folder.read_json("evaluation.json") or {},
        data=folder.read_json("data.json") or {},
        slides={"slides": index["slides"], "tiles": index["num_tiles"]} if "slides" in index else {},
        judged=read_judged(judged, run) if judged else {},
    )


def read_judged(judged: str, run: str) -> dict[str, Any]:
    """What an evaluation on other images says of a model.

    Returns:
        `data` (names of the sets), `part`, `samples`, `groups`, `is_unseen` (that was checked), `own` (the model's name there)
        and `figures`: name → metric → value, low, high; of the model and of all that was judged beside it.

    Raises:
        ConfigError: no finished run of evaluate.py on other images, or none in which the model was judged, alone under a name.
    """
    folder = RunFolder(judged)
    found, config = folder.read_json("evaluation.json") or {}, folder.config() or {}
    sets = (config.get("data") or {}).get("sets")
    if "groups" not in found or not sets:
        raise ConfigError(
            f"judged: {judged} is no finished run of evaluate.py on other images: give the run_folder of one with data.sets"
        )
    places = {name: [files.normalise(each["uri"]) for each in group["runs"]] for name, group in found["groups"].items()}
    mine = {files.normalise(run), files.join(files.normalise(run), EXPORTED)}
    own = next((name for name, uris in places.items() if len(uris) == 1 and uris[0] in mine), None)
    if own is None:
        raise ConfigError(f"judged: {judged} has not judged {run}: it has {'; '.join(f'{n}: {u}' for n, u in places.items())}")
    return {
        "data": list(sets),
        "part": found["part"],
        "samples": found["samples"],
        "groups": found["units"],
        "is_unseen": not config.get("accept_leakage"),
        "own": own,
        "figures": {name: group["figures"] for name, group in found["groups"].items()},
    }


def why_not_released(metadata: Mapping[str, Any]) -> list[str]:
    """What the licences behind a model forbid, a sentence each."""
    licences = licences_of(metadata)
    reasons = [f"{licence} forbids passing on what is made from it" for licence in licences if forbids_derivatives(licence)]
    return reasons + [f"{licence} forbids commercial use" for licence in licences if forbids_commerce(licence)]
