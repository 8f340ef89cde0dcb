"""Method coco's paraphrasers as its first stage: where they come from, how they are kept, whether they learned anything."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from csat.methods.coco.paraphrasers import LAYERS, are_there, load_paraphrasers, save_paraphrasers
from csat.methods.coco.paraphrasing import LR, Paraphrasing, ParaphrasingConfig, missed
from csat.methods.contract import FirstStage, Setting

MISSED_AT_MOST = 1.0  # of a map's variance: as much as saying each channel's mean over the tile would miss


class Paraphrasers(FirstStage):
    """The paraphrasers of one teacher's maps, for one student."""

    name = "paraphrasers"

    def __init__(self, modules: nn.ModuleDict, setting: Setting, *, epochs: int, lr: float, given: str | None):
        """
        Args:
            modules: Of `make_paraphrasers`: those that the method compares with.
            setting: Of the method.
            epochs: Visits of every tile.
            lr: Learning rate at the start.
            given: URI of a folder of trained ones; None: the run trains them.
        """
        self.modules, self.setting, self.epochs, self.lr, self.given = modules, setting, epochs, lr, given

    def make_method(self) -> Paraphrasing:
        return Paraphrasing(ParaphrasingConfig(lr=self.lr), self.modules, self.setting)

    def is_in(self, folder: str) -> bool:
        return are_there(folder)

    def save(self, folder: str) -> None:
        save_paraphrasers(self.modules, folder, teacher_sha256=self.setting.teacher.weights_sha256)

    def load(self, folder: str) -> None:
        load_paraphrasers(self.modules, folder, teacher_sha256=self.setting.teacher.weights_sha256)

    def warning(self, figures: Mapping[str, Any]) -> str | None:
        """Where they miss most of what they should say: the student is then compared with noise."""
        shares = {name: figures.get(f"loss/{missed(name)}", 0.0) for name in LAYERS}
        if max(shares.values()) <= MISSED_AT_MOST:
            return None
        said = " and ".join(f"{share:.0%} ({name})" for name, share in shares.items())
        return (
            f"the paraphrasers' error is {said} of the variance of the teacher's maps, and the student is compared with what "
            f"they say: set a higher method.options.paraphraser_lr (the paper's is {LR:g}) or more "
            "method.options.paraphraser_epochs"
        )
