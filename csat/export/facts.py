"""What is known of a model when it is exported: what its run has written, and what export.py has measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csat.licences import forbids_commerce, forbids_derivatives, licences_of
from csat.runs.folder import RunFolder
from csat.runs.students import manifest_of


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run says of its model, as far as it does: all of it JSON, and empty where there is no such file.

    Attributes:
        config: config.json of the exported folder.
        teacher: teacher.json of a pretraining, or what a fine-tuning says of the teacher beside its labels.
        evaluation: evaluation.json.
        data: data.json of a fine-tuning.
        slides: How many slides a pretraining saw, and its tiles.
    """

    config: dict[str, Any]
    teacher: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    slides: dict[str, Any] = field(default_factory=dict)

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


def read_facts(run: str, config: dict[str, Any]) -> Facts:
    """Of a run folder; of an exported folder alone there is only its config.json."""
    folder, metadata = RunFolder(run), config.get("metadata") or {}
    index = RunFolder(manifest_of(folder.uri)).read_json("index.json") or {}
    return Facts(
        config=config,
        teacher=folder.read_json("teacher.json") or metadata.get("teacher") or {},
        evaluation=folder.read_json("evaluation.json") or {},
        data=folder.read_json("data.json") or {},
        slides={"slides": index["slides"], "tiles": index["num_tiles"]} if "slides" in index else {},
    )


def why_not_released(metadata: Mapping[str, Any]) -> list[str]:
    """What the licences behind a model forbid, a sentence each."""
    licences = licences_of(metadata)
    reasons = [f"{licence} forbids passing on what is made from it" for licence in licences if forbids_derivatives(licence)]
    return reasons + [f"{licence} forbids commercial use" for licence in licences if forbids_commerce(licence)]
