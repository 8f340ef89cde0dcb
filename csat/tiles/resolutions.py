"""Where the slides of a manifest have their resolutions from, and how many were resampled: counted, and said in a line."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from csat.slides.mpp import GIVEN, GUESSED, MPP_SOURCES, SOURCE_MPP, STATED
from csat.slides.reader import NEAR

UNKNOWN = "unknown"  # pixels as they are, and nothing says their size
PHRASES = {  # in the order of the line
    STATED: "{} stated by their files",
    GIVEN: "{} given slide by slide",
    SOURCE_MPP: "{} as given for all that state none",
    GUESSED: "{} guessed (10 / objective power)",
    UNKNOWN: "{} not known",
}


class ResolutionCounts:
    """Slides by where their resolution comes from; one whose tiles differ counts once, by the least certain of them."""

    def __init__(self):
        self._sources: Counter[str] = Counter()
        self._num_near = self._num_enlarged = 0

    def add(self, table: pa.Table) -> None:
        """The tiles of one slide: a table of TILE_SCHEMA."""
        if not table.num_rows:
            return
        order = [*MPP_SOURCES, UNKNOWN]
        found = [source or UNKNOWN for source in table["mpp_source"].unique().to_pylist()]
        self._sources[max(found, key=order.index)] += 1
        across = table["read_px"].to_numpy() / np.maximum(table["width_px"].to_numpy(), table["height_px"].to_numpy())
        ratios = np.stack([across, across * table["aspect"].to_numpy()])  # pixels read for one that is seen
        coarsest, finest = ratios.min(axis=0), ratios.max(axis=0)
        # A tile's edges are whole pixels: rounding may take a ratio just beyond what was allowed.
        rounding = 1 + 1 / table["read_px"].to_numpy()
        is_enlarged = coarsest * rounding < 1 / NEAR
        is_near = ~is_enlarged & (finest <= NEAR * rounding) & (ratios != 1).any(axis=0)
        self._num_enlarged += bool(is_enlarged.any())
        self._num_near += bool(is_near.any())

    def to_dict(self) -> dict[str, Any]:
        """For the manifest's index."""
        return {"sources": dict(self._sources), "resampled_slightly": self._num_near, "enlarged": self._num_enlarged}


def resolution_summary(counts: Mapping[str, Any] | None) -> str | None:
    """One line of what `ResolutionCounts.to_dict` counted; None for a manifest of an earlier version, which did not."""
    if counts is None:
        return None
    parts = [phrase.format(f"{counts['sources'][name]:,}") for name, phrase in PHRASES.items() if name in counts["sources"]]
    line = (
        f"resolution of the slides: {', '.join(parts)}; resampled by {NEAR - 1:.0%} or less: {counts['resampled_slightly']:,}"
    )
    return line + (f"; enlarged by more: {counts['enlarged']:,}" if counts["enlarged"] else "")
