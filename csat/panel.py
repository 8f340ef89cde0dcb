"""Several teachers as one: what each says goes by the teacher's name and is described on the pixels of the run's tile.

Each of them sees the same tile, maybe shrunk by a whole factor. To a method they are one teacher with many responses: that of
HoVer-Net called `nuclei` is `nuclei.np`, and a teacher that sees the tile at half its resolution answers in cells of two
pixels. What belongs to which teacher, the names tell.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from csat.errors import ConfigError
from csat.responses import ResponseSpec, TeacherSpec

SEPARATOR = "."  # between a teacher's name and its response's


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of several teachers."""

    name: str  # in the run's settings
    spec: TeacherSpec  # as it is by itself: its own names, pixels and resolution
    shrink: int = 1  # it sees the tile averaged over squares of so many pixels

    def check_view(self, *, tile_px: int, mpp: float | None, accept_any_mpp: bool = False) -> None:
        """As `TeacherSpec.check_view`, of the run's tile.

        Raises:
            ConfigError: also where the shrink does not divide the tile.
        """
        if tile_px % self.shrink:
            raise ConfigError(
                f"a tile of {tile_px} px cannot be shrunk {self.shrink} times: set data.tile_px to a multiple of it"
            )
        seen_mpp = None if mpp is None else mpp * self.shrink
        self.spec.check_view(tile_px=tile_px // self.shrink, mpp=seen_mpp, accept_any_mpp=accept_any_mpp)


@dataclass(frozen=True, kw_only=True)
class Panel(TeacherSpec):
    """Several teachers, as methods and files see them; made by `make_panel`."""

    members: tuple[Member, ...]


def make_panel(members: Sequence[Member]) -> Panel:
    """One description of several teachers.

    Its hash is over theirs, its licence all of theirs, its resolution theirs where all agree on the tile's.
    """
    mpps = {None if each.spec.mpp is None else each.spec.mpp / each.shrink for each in members} - {None}
    sizes = [{size * each.shrink for size in each.spec.tile_px} for each in members if each.spec.tile_px is not None]
    identity = "".join(f"{each.name} {each.shrink} {each.spec.weights_sha256}\n" for each in members)
    return Panel(
        name=" + ".join(each.name for each in members),
        responses=tuple(on_tile(response, each.name, each.shrink) for each in members for response in each.spec.responses),
        mpp=mpps.pop() if len(mpps) == 1 else None,
        tile_px=tuple(sorted(set.intersection(*sizes))) if sizes else None,
        weights_sha256=hashlib.sha256(identity.encode()).hexdigest(),
        licence="; ".join(dict.fromkeys(each.spec.licence for each in members)),
        source="; ".join(f"{each.name}: {each.spec.source}" for each in members),
        members=tuple(members),
    )


def on_tile(response: ResponseSpec, name: str | None, shrink: int = 1) -> ResponseSpec:
    """A teacher's own response as its run knows it: in pixels of the tile, and under the teacher's name.

    Args:
        name: Of the teacher; None: it is the only one, and the response keeps its name.
        shrink: As `Member` has it.
    """
    return replace(
        response,
        name=response.name if name is None else f"{name}{SEPARATOR}{response.name}",
        stride_px=None if response.stride_px is None else response.stride_px * shrink,
        crop_px=response.crop_px * shrink,
    )


def names_of(teacher: TeacherSpec | None) -> tuple[str, ...]:
    """Names of several teachers; none where there is one, or none."""
    return tuple(each.name for each in teacher.members) if isinstance(teacher, Panel) else ()


def member_of(teacher: Panel, name: str) -> Member:
    """One of several teachers. Raises KeyError for a name that is not there."""
    return {each.name: each for each in teacher.members}[name]


def split_name(response: str) -> tuple[str, str]:
    """Teacher and own name of a response of several teachers."""
    teacher, _, own = response.partition(SEPARATOR)
    return teacher, own


def of_teacher(responses: Iterable[ResponseSpec], name: str) -> tuple[ResponseSpec, ...]:
    """Those of one of several teachers."""
    return tuple(spec for spec in responses if split_name(spec.name)[0] == name)


def plain_names(responses: Iterable[str]) -> Mapping[str, str]:
    """Response → the name that its meaning goes by: `nuclei.np` is a `np`. Of two of one name the first has it."""
    names, taken = list(responses), set(responses)
    plain: dict[str, str] = {}
    for name in names:
        short = name.rpartition(SEPARATOR)[2]
        plain[name] = name if short in taken else short
        taken.add(short)
    return plain
