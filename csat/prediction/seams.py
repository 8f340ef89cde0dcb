"""Nuclei where tiles meet: each is kept once, none vanishes, and memory holds a band of the slide.

Tiles overlap, by 20 um or more, so that a nucleus is whole in at least one. The rule:

1. *Core.* A nucleus belongs to the tile whose centre is nearest, of those that were answered and cover its centroid (of two
   as near, the later in row order). On a full grid that is the half-open core of each tile, bounded by the middle of the
   overlap; cores partition the slide, also where the last tiles overlap more. Where a neighbour is missing (no tissue,
   quarantined), the core reaches to the tile's own edge: no strip is left to nobody.
2. *Whole.* A nucleus that was found in its tile's core and touches no edge of what the tile saw is kept.
3. *Twins.* Of two, found by different tiles, that share half of the smaller one's area, the better is kept: the one of 2.
   before a whole one of elsewhere before a cut one; among equals the larger. One that lies beyond its tile's core is kept in
   two cases: the tile in whose core it lies found it as well, whose centroid lies beyond the border the other way (by up to
   `NEAR_UM`, else both would be lost), or it is whole where that tile's is cut. What that tile did not find is not kept: else
   there would be more nuclei at borders than elsewhere.
4. *Cut.* What touches an edge and has no such twin stays, marked `is_cut`: part of a nucleus that is larger than the overlap,
   or that reaches into a missing tile. What is cut and lies outside its tile's core is dropped.

Which nuclei are kept does not depend on the order in which tiles arrive.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import shapely

from csat.prediction.nuclei import BOX, FOUND_SCHEMA, NUCLEI_SCHEMA
from csat.prediction.slide_frame import Place, SlideFrame

NEAR_UM = 5.0  # a nucleus' radius: how far beyond its core a tile may have placed one that nobody else has
SAME = 0.5  # of the smaller one's area, from which two are one nucleus
OWN_WHOLE, OTHER_WHOLE, OWN_CUT, DROPPED = range(4)  # the better first


class Seams:
    """Takes each tile's nuclei and gives those that are kept, a band of tiles at a time, in row order.

    Attributes:
        counts: Of what was found so far: "kept", and of these "cut"; "beyond", which lies outside its tile's core, most of it
            kept there by the neighbour; "twin", in a core, where another tile's was better.
    """

    def __init__(self, places: Sequence[Place], frame: SlideFrame):
        """
        Args:
            places: What each tile's answer covers, of all tiles of the slide that will be reported; `SlideFrame.places`.
            frame: Of the slide.
        """
        self._rect = np.array(places, np.float64).reshape(-1, 4)
        self._centre = (self._rect[:, :2] + self._rect[:, 2:]) / 2
        self._near_px = NEAR_UM / (frame.mpp_x or 1.0)
        self._tree = shapely.STRtree(shapely.box(*self._rect.T))
        self._answered = np.zeros(len(places), bool)
        self._tables: dict[int, pa.Table] = {}
        self._rank = np.empty(len(places), np.int64)  # place of each tile in row order
        self._rank[np.lexsort([self._rect[:, 0], self._rect[:, 1]])] = np.arange(len(places))
        tops, self._band = np.unique(self._rect[:, 1], return_inverse=True)
        bottoms = np.zeros(len(tops))
        np.maximum.at(bottoms, self._band, self._rect[:, 3])
        # The last band that overlaps each: when that is complete, nothing more can be said of this one.
        self._needs = np.maximum(np.searchsorted(tops, np.maximum.accumulate(bottoms), side="left") - 1, np.arange(len(tops)))
        self._waiting = np.bincount(self._band, minlength=len(tops))
        self._reported = np.zeros(len(places), bool)
        self._next = 0  # band to finish
        self._settled: dict[int, np.ndarray] = {}  # of tiles that wait: rows of which is decided already that they are kept
        self._kept = _Outlines.none()  # near the lower border of finished bands
        self.counts: Counter[str] = Counter()

    def add(self, index: int, found: pa.Table | None) -> pa.Table:
        """Report a tile. In row order memory is a few bands; any other order gives the same, and holds more.

        Args:
            index: Of the tile in `places`.
            found: Its nuclei, FOUND_SCHEMA; None: it was not answered (unreadable, quarantined).

        Returns:
            The nuclei of bands that are finished now, NUCLEI_SCHEMA; often none.

        Raises:
            ValueError: the tile was reported before.
        """
        if self._reported[index]:
            raise ValueError(f"tile {index} was reported twice")
        self._reported[index] = True
        self._waiting[self._band[index]] -= 1
        self._answered[index] = found is not None
        if found is not None and len(found):
            self._tables[index] = found.select(FOUND_SCHEMA.names)
        kept = []
        while self._next < len(self._waiting) and not self._waiting[: self._needs[self._next] + 1].any():
            kept.append(self._finish_band(self._next))
            self._next += 1
        return pa.concat_tables(kept) if kept else NUCLEI_SCHEMA.empty_table()

    def finish(self) -> None:
        """Raises ValueError where a tile was not reported: its nuclei, and its neighbours', would be missing."""
        if not self._reported.all():
            raise ValueError(f"{(~self._reported).sum():,} of {len(self._reported):,} tiles were not reported")

    def _finish_band(self, band: int) -> pa.Table:
        """Decide about the nuclei of a band, with those of the bands that overlap it."""
        tiles = [tile for tile in self._tables if band <= self._band[tile] <= self._needs[band]]
        tiles.sort(key=lambda tile: self._rank[tile])
        here = [tile for tile in tiles if self._band[tile] == band]
        if not here:
            return NUCLEI_SCHEMA.empty_table()
        table = pa.concat_tables(self._tables[tile] for tile in tiles)
        tile_of = np.repeat(tiles, [len(self._tables[tile]) for tile in tiles])
        settled = np.concatenate([self._settled.get(tile, np.zeros(len(self._tables[tile]), bool)) for tile in tiles])
        is_here = self._band[tile_of] == band
        rank, beyond_px, owner, is_shared = self._claims(table, tile_of)
        is_kept = self._choose(table, tile_of, rank, beyond_px, owner, is_shared, settled, is_here)
        self._count(rank[is_here], is_kept[is_here], np.asarray(table["is_cut"])[is_here])
        for tile in here:
            del self._tables[tile]
            self._settled.pop(tile, None)
        return table.filter(pa.array(is_kept & is_here)).select(NUCLEI_SCHEMA.names)

    def _claims(self, table: pa.Table, tile_of: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each nucleus: how good its tile's claim is, how far it lies beyond that tile's core, the tile in whose core it
        lies, whether others saw it."""
        boxes = shapely.box(*(np.asarray(table[name]) for name in BOX))
        nucleus, tile = self._tree.query(boxes)
        answered = self._answered[tile]
        nucleus, tile = nucleus[answered], tile[answered]
        is_shared = np.bincount(nucleus, minlength=len(table)) > 1
        centroid = np.stack([table["x_px"], table["y_px"]], 1)
        rect, point, own = self._rect[tile], centroid[nucleus], tile_of[nucleus]
        covers = ((rect[:, :2] <= point) & (point <= rect[:, 2:])).all(1) & (tile != own)
        nucleus, tile, own = nucleus[covers], tile[covers], own[covers]
        far_own, far = (((centroid[nucleus] - self._centre[each]) ** 2).sum(1) for each in (own, tile))
        between = np.sqrt(((self._centre[own] - self._centre[tile]) ** 2).sum(1))
        beyond = (far_own - far) / (2 * np.maximum(between, 1e-9))
        lost = (beyond > 0) | ((beyond == 0) & (self._rank[tile] > self._rank[own]))
        beyond_px, is_own = np.zeros(len(table)), np.ones(len(table), bool)
        np.maximum.at(beyond_px, nucleus, beyond)
        is_own[nucleus[lost]] = False
        owner = tile_of.copy()
        nearest_last = np.lexsort([self._rank[tile[lost]], -far[lost]])
        owner[nucleus[lost][nearest_last]] = tile[lost][nearest_last]
        is_cut = np.asarray(table["is_cut"])
        rank = np.where(is_own, np.where(is_cut, OWN_CUT, OWN_WHOLE), np.where(is_cut, DROPPED, OTHER_WHOLE))
        return rank, beyond_px, owner, is_shared

    def _choose(self, table, tile_of, rank, beyond_px, owner, is_shared, settled, is_here) -> np.ndarray:
        """bool `[N]`: which are kept; also notes what later bands have to know."""
        is_near = (rank == OTHER_WHOLE) & (beyond_px <= self._near_px)
        is_own = (rank == OWN_WHOLE) | (rank == OWN_CUT)
        # Most were found in a neighbour's core, where it found them, too: they need no comparison.
        pool = np.flatnonzero(is_shared & (is_own | is_near | _touch_cut(table, rank)))
        outlines = _Outlines.of(table, tile_of, pool)
        twins: list[list[int]] = [[] for _ in pool]
        for one, other in zip(*outlines.twins(), strict=True):
            twins[one].append(other)
            twins[other].append(one)
        replaces_cut = np.array([any(rank[pool[other]] == OWN_CUT for other in each) for each in twins], bool)
        is_seen_there = np.array(
            [any(tile_of[pool[other]] == owner[row] for other in each) for row, each in zip(pool, twins, strict=True)], bool
        )
        is_gone = ~(is_own[pool] | (is_near[pool] & is_seen_there) | replaces_cut)
        is_gone[outlines.twins_in(self._kept)] = True
        chosen = np.zeros(len(pool), bool)
        for index in np.lexsort([np.arange(len(pool)), -outlines.area, rank[pool], ~settled[pool]]).tolist():
            if settled[pool[index]] or not is_gone[index]:
                chosen[index] = True
                is_gone[twins[index]] = True
        # One of a later band for whose sake one of this band is lost stays, whatever it meets there.
        lost = (is_own | is_near)[pool] & ~chosen & is_here[pool]
        for index in np.flatnonzero(chosen & ~is_here[pool]).tolist():
            settled[pool[index]] |= lost[twins[index]].any()
        for tile in np.unique(tile_of[~is_here]).tolist():
            self._settled[tile] = settled[tile_of == tile]
        later = self._rect[tile_of[~is_here], 1].min(initial=np.inf)  # upper edge of the bands to come, as far as they matter
        kept = _Outlines.join(self._kept, outlines.only(chosen & is_here[pool]))
        self._kept = kept.only(kept.box[:, 3] >= later)
        is_own[pool] = chosen
        return is_own

    def _count(self, rank: np.ndarray, is_kept: np.ndarray, is_cut: np.ndarray) -> None:
        self.counts["kept"] += int(is_kept.sum())
        self.counts["cut"] += int((is_kept & is_cut).sum())
        beyond = ~is_kept & ((rank == OTHER_WHOLE) | (rank == DROPPED))
        self.counts["beyond"] += int(beyond.sum())
        self.counts["twin"] += int((~is_kept & ~beyond).sum())


class _Outlines:
    """Outlines of some nuclei, and which tile found each."""

    def __init__(self, polygons: np.ndarray, tile: np.ndarray):
        self.polygons, self.tile = polygons, tile
        self.area = shapely.area(polygons)
        self.box = shapely.bounds(polygons)

    @classmethod
    def none(cls) -> "_Outlines":
        return cls(np.empty(0, object), np.empty(0, np.int64))

    @classmethod
    def of(cls, table: pa.Table, tile_of: np.ndarray, rows: np.ndarray) -> "_Outlines":
        wkb = table["geometry"].take(pa.array(rows)).to_numpy()
        return cls(shapely.from_wkb(wkb), tile_of[rows])

    @classmethod
    def join(cls, one: "_Outlines", other: "_Outlines") -> "_Outlines":
        return cls(np.concatenate([one.polygons, other.polygons]), np.concatenate([one.tile, other.tile]))

    def only(self, which: np.ndarray) -> "_Outlines":
        return _Outlines(self.polygons[which], self.tile[which])

    def twins(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs, each once, that different tiles found and that are one nucleus."""
        first, second = shapely.STRtree(self.polygons).query(self.polygons)
        return self._same(self, first[first < second], second[first < second])

    def twins_in(self, other: "_Outlines") -> np.ndarray:
        """Those of which `other` has a twin."""
        return np.unique(self._same(other, *shapely.STRtree(other.polygons).query(self.polygons))[0])

    def _same(self, other: "_Outlines", mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the pairs that are one nucleus. Boxes first: intersections of outlines cost the most of all here."""
        apart = self.tile[mine] != other.tile[theirs]
        mine, theirs = mine[apart], theirs[apart]
        least = SAME * np.minimum(self.area[mine], other.area[theirs])
        corner = np.minimum(self.box[mine, 2:], other.box[theirs, 2:]) - np.maximum(self.box[mine, :2], other.box[theirs, :2])
        close = corner.clip(0).prod(1) >= least
        mine, theirs, least = mine[close], theirs[close], least[close]
        same = shapely.area(shapely.intersection(self.polygons[mine], other.polygons[theirs])) >= least
        return mine[same], theirs[same]


def _touch_cut(table: pa.Table, rank: np.ndarray) -> np.ndarray:
    """bool `[N]`: whole ones beyond their tile's core whose box meets that of one that is cut, and that may be all of it."""
    cut, whole = np.flatnonzero(rank == OWN_CUT), np.flatnonzero(rank == OTHER_WHOLE)
    boxes = shapely.box(*(np.asarray(table[name]) for name in BOX))
    touching = np.zeros(len(table), bool)
    touching[whole[np.unique(shapely.STRtree(boxes[cut]).query(boxes[whole])[0])]] = True
    return touching
