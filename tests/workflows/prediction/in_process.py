"""A prediction in this process, stage after stage, as Ray Data has them: for tests of what the stages and the files are."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from csat.errors import SlideError
from csat.prediction.layout import Layout
from csat.runs.plan import Intervals
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.planned_reader import SLOT
from csat.tiles.reader import TileReader
from csat.tiles.sources import list_slides
from csat.tiles.tiling import cut_slide
from workflows.prediction.answer_stage import AnswerStage
from workflows.prediction.config import AnswersConfig, PredictConfig, SeenConfig
from workflows.prediction.framed_reader import FramedReader
from workflows.prediction.job import PredictJob, make_job
from workflows.prediction.model import describe
from workflows.prediction.part_stage import PartStage
from workflows.prediction.slide_files import write_slide_files
from workflows.prediction.stream import slots_to_do


def make(
    output: Path, slides: Sequence[object], model: AnswersConfig, *, data: SeenConfig | None = None, **settings
) -> PredictJob:
    """The job with its tiles cut."""
    config = PredictConfig(
        model=model, slides=[str(slide) for slide in slides], output=str(output), data=data or SeenConfig(), **settings
    )
    job = make_job(config, describe(config))
    rows = list_slides(config.slides, source_mpp=config.data.source_mpp)
    writer = ManifestWriter(str(output / "manifest"), config.manifest, "f" * 64, job.tiling, rows)
    for row in rows:
        try:
            cut = cut_slide(row, job.tiling, config.readers.slide_cache())
            writer.add(row, cut.tiles, cut.refused)
        except SlideError as error:
            writer.quarantine(row, error.reason, str(error))
    return job.over(writer.close())


def answer(
    job: PredictJob, done: Intervals | None = None, *, spoil: Callable[[dict], None] = lambda columns: None
) -> list[dict]:
    """All parts but of the tiles that are done. Rows as the stream gives them.

    Args:
        spoil: Changes the columns of each batch before the model sees it.
    """
    done, model, batch_size = done or Intervals(), job.model, job.config.network.batch_size
    reader = FramedReader(job.manifest.uri, job.plan, done, TileReader(tile_px=model.tile_px))
    network = AnswerStage(job.config.model, model, device="cpu", kept=(*job.nuclei_maps, *job.vectors), maps=job.maps)
    parts = PartStage(
        Layout(job.layout.uri).parts,
        job.slides,
        tile_px=model.tile_px,
        crop_px=model.crop_px,
        maps=job.nuclei_maps,
        types=("background", *model.classes),
    )
    rows = []
    for slot in slots_to_do(job.plan, done):
        for read in reader({SLOT: np.array([slot])}):
            for start in range(0, len(read["slide"]), batch_size):
                batch = {name: column[start : start + batch_size].copy() for name, column in read.items()}
                spoil(batch)
                written = parts(network(batch))
                rows += [dict(zip(written, values, strict=True)) for values in zip(*written.values(), strict=True)]
    return rows


def predict(job: PredictJob, **options) -> list[dict]:
    """Parts and files of all slides. Returns the slides' records."""
    answer(job, **options)
    return [write_slide_files(job, number) for number in range(len(job.slides))]
