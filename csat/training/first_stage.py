"""What a method needs trained before it: trained by the same loop, and kept in a folder of its own."""

import logging
from dataclasses import replace

from csat.methods.contract import FirstStage
from csat.runs.checkpoints import Cursor
from csat.runs.plan import Plan
from csat.runs.recorder import read_metrics
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.loop import Trainer

logger = logging.getLogger(__name__)


def train_first_stage(
    stage: FirstStage, plan: Plan, context: TrainContext, config: TrainConfig, *, folder: str, tile_px: int
) -> Cursor:
    """Train to the end and keep what was trained. Interrupted and started again, it resumes.

    Args:
        stage: Of the method; its modules take the weights.
        plan: The order of the tiles, over `stage.epochs`.
        context: This process's place in the run.
        config: How the run trains; there is no average of the weights.
        folder: URI, for checkpoints, metrics and what was trained.
        tile_px: As `Trainer` has it.

    Raises:
        NonFiniteLossError, StoppedError: as `Trainer.run`.
    """
    method = stage.make_method().to(context.device)
    config = replace(config, epochs=stage.epochs, optim=replace(config.optim, ema_decay=None))
    cursor = Trainer(method, plan, context, config, run_folder=folder, tile_px=tile_px).run()
    if context.rank == 0:
        stage.save(folder)
        logger.info("the %s are trained: %s", stage.name, folder)
        metrics = read_metrics(folder)
        if said := stage.warning(metrics[-1] if metrics else {}):
            logger.warning(said)
    context.gather(None)  # nobody reads it before it is written
    return cursor
