"""The contracts that cross borders: what a teacher says (`ResponseSpec`), and the columns of a tile's row.

A teacher is anything that turns uint8 tiles into *named, spatially described tensors*; a method is anything that turns
(tile, responses) into named loss terms. Neither knows the other: they meet here.

Geometry. The teacher sees a square tile of `tile_px` pixels, or a whole image of its own height and width: what is said here
for a square holds for each edge of a rectangle. A dense response covers the tile less `crop_px` on each side, one cell per
`stride_px` pixels: `[channels, n, n]` with `n = (tile_px - 2 * crop_px) // stride_px`. A response with `stride_px=None`
describes the tile as a whole: `[channels]`. The student may see the same tile at another resolution: alignment goes through
the covered fraction of the tile, never through pixel counts.

torch is named for types alone: readers and whoever else moves tiles without computing do not load it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from csat.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class Kind(StrEnum):
    """What the numbers of a response mean, and so which loss fits."""

    PROBABILITY = "probability"  # in [0, 1]; several channels sum to 1 over the channels
    REGRESSION = "regression"  # real values, compared as they are
    LOGITS = "logits"  # before a softmax over the channels
    FEATURES = "features"  # an embedding, compared by direction
    ATTENTION = "attention"  # non-negative maps, one per class


class Symmetry(StrEnum):
    """What becomes of a response when its tile is flipped or rotated (the eight symmetries of the square)."""

    SCALAR = "scalar"  # a field: values move with the pixels
    HV = "hv"  # channels (horizontal, vertical) of a vector: they move, change sign and swap
    NONE = "none"  # not known: the teacher has to see the transformed tile itself


@dataclass(frozen=True, kw_only=True)
class ResponseSpec:
    """One named response of a teacher."""

    name: str  # unique within a teacher
    kind: Kind
    channels: int
    stride_px: int | None = 1  # tile pixels per response cell; None: one vector for the whole tile
    crop_px: int = 0  # tile pixels on each side that the response does not cover
    symmetry: Symmetry = Symmetry.SCALAR
    channel_names: tuple[str, ...] = ()  # for reports: nucleus types, classes

    def __post_init__(self):
        if self.symmetry == Symmetry.HV and self.channels != 2:
            raise ConfigError(
                f"response {self.name!r}: an hv field has 2 channels (horizontal, vertical), not {self.channels}"
            )
        if self.channel_names and len(self.channel_names) != self.channels:
            raise ConfigError(f"response {self.name!r}: {len(self.channel_names)} channel names for {self.channels} channels")

    @property
    def is_dense(self) -> bool:
        return self.stride_px is not None

    def shape(self, tile_px: int | tuple[int, int]) -> tuple[int, ...]:
        """Shape of this response for one tile: `(C, n, n)`, or `(C,)` where the response is global.

        Args:
            tile_px: Edge of the tile, or (height, width) of an image: then the shape is `(C, rows, columns)`.

        Raises:
            ConfigError: the tile is too small for the crop, or the stride does not divide what the crop leaves.
        """
        if not self.is_dense:
            return (self.channels,)
        edges = (tile_px, tile_px) if isinstance(tile_px, int) else tile_px
        return (self.channels, *(self._cells(edge) for edge in edges))

    def _cells(self, tile_px: int) -> int:
        covered_px = tile_px - 2 * self.crop_px
        if covered_px <= 0 or covered_px % self.stride_px:
            raise ConfigError(
                f"response {self.name!r} covers {covered_px} px of a {tile_px} px tile at stride {self.stride_px}: "
                f"choose a tile size of {2 * self.crop_px} + a multiple of {self.stride_px} px"
            )
        return covered_px // self.stride_px

    def num_bytes(self, tile_px: int | tuple[int, int]) -> int:
        """Bytes of this response for one tile as it travels (float16)."""
        return 2 * math.prod(self.shape(tile_px))


def needs_view_in_pool(specs: Iterable[ResponseSpec]) -> bool:
    """Whether a tile must be put in its view before the teacher sees it.

    True as soon as one response does not say how it behaves under symmetries: a mirrored feature grid is not the feature
    grid of the mirrored tile. All responses of the tile then come from the transformed tile, and the method transforms none.
    """
    return any(spec.symmetry == Symmetry.NONE for spec in specs)


def spec_from_json(values: Mapping[str, Any]) -> ResponseSpec:
    """A response as `asdict` and JSON left it."""
    enums = {"kind": Kind(values["kind"]), "symmetry": Symmetry(values["symmetry"])}
    return ResponseSpec(**{**values, **enums, "channel_names": tuple(values["channel_names"])})


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """Everything that the rest of the system may know about a teacher. Written to the run's teacher.json."""

    name: str
    responses: tuple[ResponseSpec, ...]
    mpp: float | None  # the resolution it was made for, micrometres per pixel; None: any
    tile_px: tuple[int, ...] | None = None  # the only tile sizes that it takes; None: any that its responses fit
    weights_sha256: str = ""  # of the weights file; for a weight-free teacher, of its settings
    licence: str = "unknown"  # of the weights; it follows the student into its model card
    source: str = ""  # where the weights came from: file, hub id, or the rule that replaces them

    def response(self, name: str) -> ResponseSpec:
        """The response of that name. Raises ConfigError naming what this teacher has."""
        for spec in self.responses:
            if spec.name == name:
                return spec
        have = ", ".join(spec.name for spec in self.responses)
        raise ConfigError(f"teacher {self.name!r} has no response {name!r}; it has: {have}")

    def check_view(self, *, tile_px: int, mpp: float | None, accept_any_mpp: bool = False) -> None:
        """Refuse a tile size or a resolution that this teacher was not made for.

        Args:
            tile_px: Edge of the tile that the teacher will see.
            mpp: Its resolution, micrometres per pixel; None where the user reads pixels as they are.
            accept_any_mpp: The user insists.

        Raises:
            ConfigError: with the sizes or the resolution that would do.
        """
        if self.tile_px is not None and tile_px not in self.tile_px:
            nearest = sorted(sorted(self.tile_px, key=lambda size: abs(size - tile_px))[:4])
            raise ConfigError(
                f"teacher {self.name!r} does not take tiles of {tile_px} px; the nearest that it takes: "
                f"{', '.join(map(str, nearest))} px. Set data.tile_px"
            )
        for spec in self.responses:
            spec.shape(tile_px)
        if self.mpp is None or accept_any_mpp or mpp is None:
            return
        if not 0.9 < mpp / self.mpp < 1.1:
            raise ConfigError(
                f"teacher {self.name!r} was made for {self.mpp} um/px and the tiles are read at {mpp} um/px: set data.mpp "
                f"{self.mpp} (and student.downsample 2 to let the student see half of that), or "
                "teacher.accept_any_mpp true"
            )


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """One named target of a labelled tile: what a person said, on the tile's own pixels."""

    name: str
    dtype: str  # as NumPy names it
    channels: int | None = None  # None: no channel axis
    is_dense: bool = True  # one value per pixel; else one per tile

    def shape(self, tile_px: int) -> tuple[int, ...]:
        """Shape of this target for one tile: `([C,] tile_px, tile_px)`, or `([C],)` where it is not dense."""
        channels = () if self.channels is None else (self.channels,)
        return (*channels, tile_px, tile_px) if self.is_dense else channels


@dataclass
class Batch:
    """What a method sees: tiles and the teacher's responses to them, on the training device.

    Attributes:
        tiles: uint8 `[B, 3, tile_px, tile_px]`, RGB; of whole images `[B, 3, height, width]`, all of one size.
        responses: name → float `[B, C, n, n]` or `[B, C]`, detached, for the tile as it stands in `tiles`.
        targets: name → what a person labelled, by `TargetSpec`; empty for methods without labels.
        positions: int64 `[B]`, place in the plan: the only source of randomness per tile.
        student_tiles: uint8, `tiles` at the student's resolution where it was read by itself; None: shrink `tiles`.
        kept: name → what an earlier turn of this step left for a later one, detached: a part is computed once a step. Emptied
            after the step.
        answered: Of several teachers: name → bool `[B]`, whether it has an answer; where it has none, its responses are zeros.
        shares: Of several teachers: name → float `[B]`, what its terms of a tile are multiplied with, see
            `csat.training.shares`; without the teachers that have answered every tile of the step.
    """

    tiles: Tensor
    positions: Tensor
    responses: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)
    student_tiles: Tensor | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)
    answered: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.tiles.shape[0]
