import numpy as np
import pytest

from csat.errors import ConfigError
from csat.evaluation.class_order import InOrder, in_order
from csat.prediction.answers import About, classes_of, task_of
from csat.responses import Kind, ResponseSpec, Symmetry

NP = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)
HV = ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV)
TYPES = ("background", "Epithelial", "lymphocytes", "dead")
TP = ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=4, channel_names=TYPES)
LABEL = ResponseSpec(name="label", kind=Kind.PROBABILITY, channels=2, stride_px=None, channel_names=("a", "b"))


class Numbered:
    """Each channel of an answer holds its own number."""

    def __init__(self, *specs):
        self.specs, self.tile_px, self.mpp, self.about = specs, 8, 0.5, About(name="numbered")
        self.task, self.classes = task_of(specs), classes_of(specs)

    def answer(self, tiles):
        return {
            spec.name: np.broadcast_to(
                np.arange(spec.channels, dtype=np.float32).reshape(1, -1, *((1, 1) if spec.is_dense else ())),
                (len(tiles), spec.channels, *((8, 8) if spec.is_dense else ())),
            )
            for spec in self.specs
        }


TILES = np.zeros((2, 8, 8, 3), np.uint8)


def test_types_follow_the_labels_and_the_background_stays_first():
    ordered = InOrder(Numbered(NP, HV, TP), ("dead", "epithelial", "lymphocyte"))
    said = ordered.answer(TILES)
    assert said["tp"][0, :, 0, 0].tolist() == [0, 3, 1, 2]
    assert said["hv"][0, :, 0, 0].tolist() == [0, 1], "nothing else moves"
    assert ordered.classes == ("dead", "epithelial", "lymphocyte")
    assert ordered.specs[2].channel_names == ("background", "dead", "Epithelial", "lymphocytes")


def test_classes_of_whole_tiles():
    assert InOrder(Numbered(LABEL), ("b", "a")).answer(TILES)["label"].tolist() == [[1, 0]] * 2


def test_without_classes_answers_stay_as_they_come():
    answers = Numbered(NP, HV, TP)
    assert in_order(answers, ()) is answers


@pytest.mark.parametrize("classes", [("dead", "epithelial"), ("dead", "epithelial", "spindle")])
def test_other_classes_are_refused(classes):
    with pytest.raises(ConfigError, match="numbered tells Epithelial, lymphocytes, dead apart, not dead, epithelial"):
        InOrder(Numbered(NP, HV, TP), classes)
