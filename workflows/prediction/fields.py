"""Fields (tiles) that may be shown: a few of each slide, so that the most typical and the most odd of all can be chosen.

A field is described by a few *figures*, such as how many nuclei it has. Of a slide are kept: fields at even distances, and
those with the smallest and the largest value of each figure. When all slides are done, each figure is counted from its median
in robust standard deviations (1.4826 x the median distance from the median, at least half the plain one): a field is as odd
as its oddest figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from csat.columns import OK, POSITION, RESPONSE_PREFIX, STATUS
from csat.prediction.parts import Tables
from workflows.prediction.columns import AT, HEAT, NUCLEI, TILES

PLACE = (POSITION, "x_px", "y_px", "row")
FIGURES, SAMPLED = "figures", "sampled"
TO_SD = 1.4826  # of a normal distribution: median distance from the median → standard deviation
MOST_CHANNELS = 16  # answers with more, such as embeddings, are no figures that a person reads


class FieldSample:
    """The fields of one slide.

    Args:
        num_shown: How many of each kind the page shows of all slides; 0: nothing is kept.
        classes: Answer about a tile → names of its channels; HEAT → those of the map's.
    """

    def __init__(self, num_shown: int, classes: Mapping[str, Sequence[str]]):
        self._most, self._classes = 4 * num_shown, classes
        self._kept: list[dict[str, Any]] = []
        self._stride, self._seen = 1, 0
        self._extremes: dict[tuple[str, int], list[tuple[float, dict[str, Any]]]] = {}
        self._num_extremes = min(num_shown, 4)

    def add(self, tables: Tables) -> None:
        """The tiles of the next part that have an answer."""
        if not self._most:
            return
        tiles = tables[TILES]
        tiles = tiles.filter(pa.array(tiles[STATUS].to_numpy() == OK))
        figures = figures_of(tiles, tables.get(NUCLEI), self._classes)
        if not figures:
            return
        for row, place in enumerate(tiles.select(PLACE).to_pylist()):
            known = {name: float(values[row]) for name, values in figures.items() if np.isfinite(values[row])}
            self._keep({**place, FIGURES: {name: round(value, 4) for name, value in known.items()}})

    def chosen(self) -> list[dict[str, Any]]:
        """A few dozen fields, in the order of their positions: place, as the manifest has it, and FIGURES."""
        extremes = [field for entries in self._extremes.values() for _, field in entries]
        found = {field[POSITION]: field for field in extremes} | {
            field[POSITION]: {**field, SAMPLED: True} for field in self._kept
        }
        return [found[position] for position in sorted(found)]

    def _keep(self, field: dict[str, Any]) -> None:
        if self._seen % self._stride == 0:
            self._kept.append(field)
            if len(self._kept) > 2 * self._most:  # half of them, at twice the distance
                self._kept, self._stride = self._kept[::2], 2 * self._stride
        self._seen += 1
        for name, value in field[FIGURES].items():
            for sign in (-1, 1):
                entries = self._extremes.setdefault((name, sign), [])
                if len(entries) < self._num_extremes or sign * value > entries[-1][0]:
                    entries.append((sign * value, field))
                    entries.sort(key=lambda entry: -entry[0])
                    del entries[self._num_extremes :]


def figures_of(tiles: pa.Table, nuclei: pa.Table | None, classes: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Figure → its value for each tile.

    Args:
        tiles: Of a part, those that have an answer.
        nuclei: That were found in them, where any are looked for.
        classes: As `FieldSample` takes it.
    """
    figures: dict[str, np.ndarray] = {}
    if not len(tiles):
        return figures
    if nuclei is not None:
        owner = np.searchsorted(tiles[POSITION].to_numpy(), nuclei[POSITION].to_numpy())
        count = np.bincount(owner, minlength=len(tiles))
        figures["nuclei"] = count.astype(np.float64)
        for name, column in (("mean area of a nucleus, um²", "area_um2"), ("mean probability of a nucleus", "prob")):
            values = np.nan_to_num(nuclei[column].to_numpy().astype(np.float64))
            sums = np.bincount(owner, weights=values, minlength=len(tiles))
            figures[name] = np.divide(
                sums, count, out=np.full(len(tiles), np.nan), where=count > 0
            )  # of none there is no mean
    for name in tiles.column_names:
        if name == HEAT:
            cells = zip(tiles[HEAT].to_pylist(), tiles[HEAT + AT].to_pylist(), strict=True)
            values = np.array([np.frombuffer(cell, np.uint8).reshape(at[2:]).mean((1, 2)) / 255 for cell, at in cells])
            figures |= {f"mean probability of {name}": column for name, column in zip(classes[HEAT], values.T, strict=True)}
        elif name.startswith(RESPONSE_PREFIX) and tiles[name].type.list_size <= MOST_CHANNELS:
            values = np.array(tiles[name].to_pylist(), np.float64)
            names = classes[name.removeprefix(RESPONSE_PREFIX)]
            figures |= {f"probability of {each}": column for each, column in zip(names, values.T, strict=True)}
    return figures


def rank(fields: Sequence[dict[str, Any]]) -> tuple[np.ndarray, list[str]]:
    """How odd each field is among all, and by which figure.

    Returns:
        float64 `[n]`, robust standard deviations of its oddest figure; and that figure in words.
    """
    names = sorted({name for field in fields for name in field[FIGURES]})
    values = np.array([[field[FIGURES].get(name, np.nan) for name in names] for field in fields], np.float64)
    values = values.reshape(len(fields), len(names))
    if not len(fields) or not names:
        return np.zeros(len(fields)), [""] * len(fields)
    usual = values[[bool(field.get(SAMPLED)) for field in fields]]  # extremes were chosen for being far from the middle
    middle = np.nanmedian(usual, axis=0)
    spread = TO_SD * np.nanmedian(np.abs(usual - middle), axis=0)
    spread = np.maximum(spread, np.nanstd(values, axis=0) / 2).clip(1e-9)  # most fields may have the same value, such as 0
    distance = np.nan_to_num(np.abs(values - middle) / spread)
    oddest = distance.argmax(axis=1)
    told = [f"{names[column]} {values[row, column]:.4g} (median {middle[column]:.4g})" for row, column in enumerate(oddest)]
    return distance.max(axis=1), told
