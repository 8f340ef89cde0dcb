"""Answers whose classes come in the order of the labels that they are judged on."""

from dataclasses import replace

import numpy as np

from csat import nuclei
from csat.errors import ConfigError
from csat.prediction.answers import BACKGROUND, Answers
from csat.tasks import Task

OF_TASK = {Task.NUCLEI: "tp", Task.SEGMENTATION: "mask", Task.CLASSIFICATION: "label"}  # the answer with the classes


class InOrder:
    """The same answers with the channels of their classes in another order; see `csat.prediction.answers.Answers`.

    Args:
        answers: As they come.
        classes: The same classes in the wanted order.

    Raises:
        ConfigError: other classes.
    """

    def __init__(self, answers: Answers, classes: tuple[str, ...]):
        order = nuclei.order_of(answers.classes, classes)
        if order is None:
            raise ConfigError(f"{answers.about.name} tells {', '.join(answers.classes)} apart, not {', '.join(classes)}")
        first = BACKGROUND if answers.task == Task.NUCLEI else 0
        self._channels = [*range(first), *(first + index for index in order)]
        self._answers, self._name = answers, OF_TASK[answers.task]
        self.specs = tuple(self._renamed(spec) for spec in answers.specs)
        self.tile_px, self.mpp, self.task, self.about = answers.tile_px, answers.mpp, answers.task, answers.about
        self.classes = classes

    def answer(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        said = self._answers.answer(tiles)
        return {**said, self._name: said[self._name][:, self._channels]}

    def _renamed(self, spec):
        if spec.name != self._name or not spec.channel_names:
            return spec
        return replace(spec, channel_names=tuple(spec.channel_names[index] for index in self._channels))


def in_order(answers: Answers, classes: tuple[str, ...]) -> Answers:
    """The answers with these classes; as they come where no classes are judged."""
    return InOrder(answers, classes) if classes else answers
