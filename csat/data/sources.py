"""Which slides there are: files, folders, globs, lists and parquet, local or in a bucket, as sorted `SlideRow`s."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SlideRow:
    """One slide, image or parquet file, known by name only: nothing has been opened yet."""

    slide: str  # absolute local path, or URI
    kind: str  # "wsi", "image" (png, jpg, ...: one level) or "parquet" (one row per encoded tile); a tif is "wsi" until opened
    patient: str | None = None  # for splits that must not leak
    mpp: float | None = None  # um/px of level 0 as the *user* gave it for this slide: it wins over what the file says
    num_tiles: int | None = None  # rows of a parquet; unknown (None) for the others


def list_slides(slides: Sequence[str], *, source_mpp: float | None = None) -> list[SlideRow]:
    raise NotImplementedError
