"""How a prediction flows: what each stage was busy with, who waited for whom, and the rates of the whole."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from csat.columns import READ_S, TEACHER_S
from workflows.prediction.columns import FIRST, NETWORK, OUTLINE_S, OUTLINER, READER, STOP

# Stage → the columns with its seconds and with who worked, of a part's row.
STAGES = {"read": (READ_S, READER), "network": (TEACHER_S, NETWORK), "outlines": (OUTLINE_S, OUTLINER)}


class Flow:
    """Figures of one attempt, from its first to its last part."""

    def __init__(self):
        self.started = time.perf_counter()
        self.first_part_s: float | None = None
        self.tiles = self._first_tiles = 0
        self.fates: Counter[str] = Counter()
        self._busy_s: Counter[str] = Counter()
        self._workers: dict[str, set[str]] = defaultdict(set)
        self._slides = 0
        self._mm2 = 0.0
        self._assembly_s = 0.0
        self.stream_s = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def add_part(self, row: Mapping[str, Any]) -> None:
        """A part was written."""
        if self.first_part_s is None:
            self.first_part_s, self._first_tiles = self.seconds, int(row[STOP] - row[FIRST])
        self.stream_s = self.seconds
        self.tiles += int(row[STOP] - row[FIRST])
        for stage, (seconds, worker) in STAGES.items():
            self._busy_s[stage] += float(row[seconds])
            self._workers[stage].add(str(row[worker]))

    def add_slide(self, record: Mapping[str, Any]) -> None:
        """A slide is done."""
        self._slides += 1
        self._mm2 += record["summary"].get("seen_mm2") or 0.0
        self._assembly_s += record["assembly_s"]

    def figures(self, *, max_slides: int) -> dict[str, Any]:
        """For the attempt's file and for throughput.json.

        Args:
            max_slides: Whose files are written at the same time.
        """
        wall_s = self.seconds
        stream_s = max(self.stream_s - (self.first_part_s or 0.0), 1e-9)  # without the start of the actors
        stages = {
            stage: {
                "busy_s": self._busy_s[stage],
                "actors": len(self._workers[stage]),
                "busy_share": min(1.0, self._busy_s[stage] / (stream_s * max(1, len(self._workers[stage])))),
                "tiles_per_s_per_actor": self.tiles / self._busy_s[stage] if self._busy_s[stage] else None,
            }
            for stage in STAGES
        }
        busy_share = min(1.0, self._assembly_s / (wall_s * max_slides))
        stages["files"] = {"busy_s": self._assembly_s, "actors": max_slides, "busy_share": busy_share}
        return {
            "tiles": self.tiles,
            "slides": self._slides,
            "mm2": self._mm2,
            "wall_s": wall_s,
            "start_s": self.first_part_s,
            "steady_tiles_per_s": (self.tiles - self._first_tiles) / max(wall_s - self.first_part_s, 1e-9)
            if self.tiles
            else None,
            "stream_s": self.stream_s,
            "stages": stages,
        }


def waited(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence: which stage was the busiest, and for how much of the time the others waited."""
    busiest = max(stages, key=lambda stage: stages[stage]["busy_share"])
    others = ", ".join(
        f"{stage} {max(0.0, 1 - figures['busy_share']):.0%}" for stage, figures in stages.items() if stage != busiest
    )
    return f"{busiest} was busy for {stages[busiest]['busy_share']:.0%} of the time; the others waited: {others}"
