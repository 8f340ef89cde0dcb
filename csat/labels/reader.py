"""Positions of a plan in, rows with pixels and targets out: labelled samples, augmented, as the training loop takes them."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from csat.columns import OK, POSITION, QUARANTINED, READ_S, REASON, STATUS, TARGET_PREFIX, TEACHER_S, TILE
from csat.errors import SlideError
from csat.labels.augment import JointAugment, JointConfig, fit_tile
from csat.labels.datasets.contract import Sample
from csat.labels.decoded import SampleSource
from csat.labels.order import SampleOrder
from csat.labels.targets import make_targets
from csat.runs.plan import Intervals, Plan
from csat.tasks import DatasetInfo, targets_of
from csat.views.draws import hash_positions

AUGMENT_STREAM = 2  # which of a position's random streams seeds its augmentation
BATCHES_AHEAD = 2  # made by the reading thread while the model works on the one before


class LabelledReader:
    """Reads positions. Deterministic: a position gives the same row in any process, whatever came before.

    Args:
        source: Decoded samples.
        samples: Training samples; `first_index` is the first one's index in `source`.
        info: Task and classes.
        order: Which sample stands at which position.
        augment: Random changes of image and labels; None: none.
        tile_px: Edge of the tiles.
        fit: As `fit_tile`.
        seed: Of the augmentation.
    """

    def __init__(
        self,
        source: SampleSource,
        samples: Sequence[Sample],
        info: DatasetInfo,
        order: SampleOrder,
        *,
        augment: JointConfig | None,
        tile_px: int,
        fit: str,
        seed: int,
        first_index: int = 0,
    ):
        self.source, self.samples, self.info, self.order = source, samples, info, order
        self.augment = None if augment is None else JointAugment(augment)
        self.tile_px, self.fit, self.seed, self.first_index = tile_px, fit, seed, first_index
        self._epoch: tuple[int, np.ndarray] | None = None

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add pixels and targets.

        Args:
            columns: With POSITION, int64 `[B]`.

        Returns:
            POSITION, TILE uint8 `[B, tile_px, tile_px, 3]`, the targets, STATUS, REASON, READ_S, TEACHER_S, and where the row
            came from: slide (the sample's key), x_px, y_px. A sample that cannot be decoded is QUARANTINED.
        """
        positions = np.asarray(columns[POSITION], dtype=np.int64)
        num_rows = len(positions)
        out = {
            POSITION: positions,
            TILE: np.zeros((num_rows, self.tile_px, self.tile_px, 3), np.uint8),
            STATUS: np.full(num_rows, OK, np.uint8),
            REASON: np.full(num_rows, "", object),
            READ_S: np.zeros(num_rows, np.float32),
            TEACHER_S: np.zeros(num_rows, np.float32),
            "slide": np.full(num_rows, "", object),
            "x_px": np.zeros(num_rows, np.int64),
            "y_px": np.zeros(num_rows, np.int64),
        }
        for spec in targets_of(self.info):
            out[TARGET_PREFIX + spec.name] = np.zeros((num_rows, *spec.shape(self.tile_px)), spec.dtype)
        seeds = hash_positions(positions, seed=self.seed, stream=AUGMENT_STREAM)
        for row, position in enumerate(positions.tolist()):
            start = time.perf_counter()
            sample_index = self._sample_at(position)
            sample = self.samples[sample_index]
            out["slide"][row] = sample.key
            try:
                self._fill(out, row, sample_index, sample, int(seeds[row] >> np.uint64(1)))
            except SlideError as error:
                out[STATUS][row], out[REASON][row] = QUARANTINED, f"{error.reason}: {error}"
            out[READ_S][row] = time.perf_counter() - start
        return out

    def _fill(self, out: dict[str, np.ndarray], row: int, sample_index: int, sample: Sample, seed: int) -> None:
        decoded = self.source.get(self.first_index + sample_index)
        if self.augment is None:
            tile = fit_tile(decoded, tile_px=self.tile_px, fit=self.fit)
        else:
            tile = self.augment(decoded, tile_px=self.tile_px, fit=self.fit, seed=seed)
        out[TILE][row] = tile.image
        for name, target in make_targets(self.info, tile, sample.label).items():
            out[TARGET_PREFIX + name][row] = target

    def _sample_at(self, position: int) -> int:
        epoch, place = divmod(position, self.order.plan.num_tiles)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self.order.epoch(epoch)
        return int(self._epoch[1][place])


def read_here(
    reader: LabelledReader, plan: Plan, done: Intervals, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """This rank's share of what is not done, read by a thread of this process, a few batches ahead.

    What is not done is taken in order, `batch_size * world_size` positions at once, which the ranks deal out among themselves:
    a step trains the same positions however many ranks there are. The last of an epoch may be fewer, or none for some ranks
    (columns of length 0: all ranks yield equally often).
    """
    step = batch_size * world_size
    with ThreadPoolExecutor(1) as thread:
        ahead = []
        for epoch in range(plan.num_epochs):
            positions = epoch * plan.num_tiles + np.arange(plan.num_tiles)
            positions = positions[~done.contains(positions)]
            for start in range(0, len(positions), step):
                mine = positions[start : start + step][rank::world_size]
                ahead.append(thread.submit(reader, {POSITION: mine}))
                if len(ahead) > BATCHES_AHEAD:
                    yield ahead.pop(0).result()
        while ahead:
            yield ahead.pop(0).result()
