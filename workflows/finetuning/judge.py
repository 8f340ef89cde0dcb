"""A fine-tuned model on the validation and test splits: every rank takes its share, and all of them get the whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from csat.errors import StoppedError
from csat.evaluation import judging, scores
from csat.evaluation.predictions import Predictions, concatenate
from csat.labels.datasets.contract import Decoded, Sample
from csat.labels.decoded import SampleSource
from csat.prediction.answers import ModelAnswers
from csat.prediction.windows import View
from csat.training.context import TrainContext
from workflows.finetuning.job import LabelledJob


class Judge:
    """Measures a model on the validation and test splits; every rank takes its share of the samples.

    Raises:
        StoppedError: in the midst of it, on every rank, when the run was asked to end.
    """

    def __init__(self, job: LabelledJob, context: TrainContext):
        self.job, self.context = job, context
        self._source = job.prepared.source()
        self._until_stopped = _UntilStopped(self._source, context.is_stopped)
        data = job.prepared.data
        self._index_of = {sample.key: index for index, sample in enumerate(data.samples)}
        self._view = View(fit=job.config.data.fit)

    def predict(self, model: nn.Module, split: str, *, is_final: bool) -> Predictions:
        """Of all samples of a split, the same on every rank. While training, only what the choosing metric needs."""
        info, config = self.job.prepared.data.info, self.job.config
        needs_instances = is_final or scores.check_metric(info.task, info.classes, config.metric) != "dice"
        view = replace(self._view, views=config.test_time_views) if is_final else self._view
        mine = self.job.prepared.data.splits[split][self.context.rank :: self.context.world_size]
        try:
            said = self._ask(judging.judge, model, mine, view, self._until_stopped, with_instances=needs_instances)
        except StoppedError:
            said = None
        shares = self.context.gather(said)
        if any(share is None for share in shares):
            raise StoppedError("the run was asked to end")
        return concatenate(shares)

    def pictures(self, model: nn.Module, predictions: Predictions) -> list[dict[str, Any]]:
        """Of the samples that the model is most wrong about."""
        worst = np.argsort(-predictions.loss, kind="stable")[: self.job.config.report_samples]
        keys = [predictions.keys[row] for row in worst]
        samples = [self.job.prepared.data.samples[self._index_of[key]] for key in keys]
        return self._ask(judging.show, model, samples, self._view, self._source)

    def _ask(
        self, how: Callable, model: nn.Module, samples: Sequence[Sample], view: View, source: SampleSource, **options: Any
    ) -> Any:
        indices = [self._index_of[sample.key] for sample in samples]
        config, info = self.job.config, self.job.prepared.data.info
        answers = ModelAnswers(
            model, tile_px=config.data.tile_px, device=self.context.device, precision=config.train.precision
        )
        return how(answers, source, samples, indices, info, view, **options)


@dataclass(frozen=True)
class _UntilStopped:
    """Samples of a source, until the run is asked to end: then StoppedError."""

    source: SampleSource
    is_stopped: Callable[[], bool]

    def get(self, index: int) -> Decoded:
        if self.is_stopped():
            raise StoppedError("the run was asked to end")
        return self.source.get(index)
