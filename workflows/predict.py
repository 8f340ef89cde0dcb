"""Predict on slides: nuclei, heatmaps, masks, embeddings, as files for QuPath and tables, from any trained model or teacher.

    python workflows/predict.py --model runs/csat-nuclei --slides 's3://bucket/*.svs' --output s3://bucket/out

Slides become a manifest of tiles, as in pretrain.py; tiles are read, answered by a pool of actors with the model, and made
into nuclei and tables on CPUs beside it. A slide is done when all its files are written. The same command resumes after any
interruption, and leaves alone what is done.
"""

import logging
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

from csat.runs.folder import RunFolder
from workflows.prediction.config import PredictConfig
from workflows.shell import command_line
from workflows.shell.config import check_counts
from workflows.shell.kept import kept_of_prediction

logger = logging.getLogger("predict")


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`; 0 also where all slides were done before."""
    return command_line.run(predict, PredictConfig, __doc__, argv, kept=lambda config: kept_of_prediction(config.output))


def predict(config: PredictConfig) -> int:
    """All of it, top to bottom. Up to `predict_slides` there are checks and metadata; nothing costly starts until then."""
    check_counts(readers=config.readers, network=config.network, outlines=config.outlines)
    # Not above: they take seconds to load, and `--help` or a refused setting needs none of them.
    from csat.runs.accounts import begin_attempt, write_attempt
    from csat.tiles.sources import list_slides
    from workflows.prediction.check import check_resources, check_same_model, tell_plan, with_precision
    from workflows.prediction.finish import finish, tell_result
    from workflows.prediction.job import make_job
    from workflows.prediction.model import describe
    from workflows.prediction.run import predict_slides
    from workflows.shell import cluster
    from workflows.shell.meters import StoreMeter
    from workflows.shell.status import under_way
    from workflows.shell.tile_slides import build_manifest

    folder = RunFolder(config.output, setting="output")
    if not folder.is_finished():
        cluster.start_meanwhile(config.ray)
    job = make_job(config, describe(config))
    slides = list_slides(config.slides, source_mpp=config.data.source_mpp)
    is_rerun = folder.open(config, overwrite=config.overwrite)
    check_same_model(folder, job.model)
    if is_rerun and folder.is_finished():
        tell_result(folder, first="this prediction is finished: nothing to do")
        return 0

    cluster.connect(config.ray)
    check_resources(job)
    cluster.check_run_folder_is_shared(folder.uri)
    job = with_precision(job, folder)
    manifest, _ = build_manifest(folder.path("manifest"), slides, job.tiling, config.manifest, config.readers.slide_cache())
    job = job.over(manifest)
    tell_plan(job)

    with under_way(folder):
        attempt, started = begin_attempt(folder), time.monotonic()
        with StoreMeter() as meter:
            flow = predict_slides(job)
        store = meter.figures() | flow.figures(max_slides=config.assembly.max_slides)
        write_attempt(folder, attempt, seconds=time.monotonic() - started, store=store)
        finish(job, folder)
    tell_result(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
