"""What the torch teachers share: uint8 tiles in, micro-batches over the device, float16 responses out."""

from abc import abstractmethod
from collections.abc import Mapping
from copy import copy
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from csat.errors import ConfigError
from csat.precision import BFLOAT16, FLOAT32, resolve_precision
from csat.responses import TeacherSpec
from teachers.contract import Teacher

Precision = Literal["best", "float32", "bfloat16"]  # see csat.precision


# Tiles at once where nobody says how many: on a CPU as many as leave their maps in its cache. EfficientNet-Lite2 of 224 px
# answers 1.3 (bfloat16) to 1.7 times (float32) as many in eights as in thirty-twos, a ViT-S/14 1.15 times (EPYC, one core).
MICRO_BATCH = {"cpu": 8, "cuda": 32}


class TorchTeacher(Teacher):
    """A teacher that is a torch module. Subclasses say what it answers to one micro-batch, and how many tiles suit a device.

    In bfloat16 it runs under autocast, which computes matrix products and convolutions so. A subclass whose module is faster
    when all of it is in bfloat16 does without: `uses_autocast`.

    Args:
        spec: What it answers.
        device: Where its module already is.
        precision: "bfloat16" takes about half the time and memory where the device has bfloat16 units; "best" does so
            there, and is "float32" elsewhere. What a run has decided, it says here.
        micro_batch: Tiles that are on the device at once. It bounds the memory, whatever batch arrives. None: what suits it.
    """

    suits: Mapping[str, int] = MappingProxyType(MICRO_BATCH)  # device → tiles at once
    uses_autocast = True  # where it computes in bfloat16

    def __init__(self, spec: TeacherSpec, *, device: str, precision: Precision = "float32", micro_batch: int | None = None):
        if micro_batch is not None and micro_batch < 1:
            raise ConfigError(f"teacher {spec.name!r}: micro_batch is a number of tiles, at least 1, not {micro_batch}")
        self.spec = spec
        self.device = torch.device(device)
        self.precision = resolve_precision(precision, device)
        self.micro_batch = micro_batch or self.suits.get(self.device.type, MICRO_BATCH["cuda"])

    def in_bfloat16(self) -> Self:
        """The same teacher in that number format; this one, which computes in float32, stays as it is."""
        assert self.precision == FLOAT32
        other = copy(self)
        other.precision = BFLOAT16
        return other

    @abstractmethod
    def answer(self, images: Tensor) -> dict[str, Tensor]:
        """Responses to one micro-batch, for every response in `spec`.

        Args:
            images: float32 `[b, 3, H, W]`, RGB, 0 to 255, channels_last, on the device.
        """

    def respond(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {response.name: [] for response in self.spec.responses}
        use_autocast = self.uses_autocast and self.precision == BFLOAT16
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=use_autocast):
            for start in range(0, len(tiles), self.micro_batch):
                # A copy, since tiles may be read-only. Bytes travel to the device, floats would be four times as many.
                batch = torch.tensor(tiles[start : start + self.micro_batch]).to(self.device)
                answers = self.answer(batch.permute(0, 3, 1, 2).float())  # [b,H,W,3] permuted is channels_last already
                for name, values in parts.items():
                    values.append(answers[name].to(torch.float16).cpu().numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}
