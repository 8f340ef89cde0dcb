import json
import math
from dataclasses import replace

import numpy as np
import pytest

from csat.errors import ConfigError, DatasetError
from csat.evaluation import scores
from csat.evaluation.metrics.bootstrap import draw_weights, index_groups
from csat.evaluation.predictions import LATER
from csat.tasks import Task
from tests.support.made_up import CLASSES, TISSUES, classified, nuclei, segmented

FEW = {"num_bootstraps": 400}


# ---------------------------------------------------------------------------------------------------- the choosing metric


def test_every_task_has_a_main_metric_that_may_choose():
    for task in Task:
        assert scores.check_metric(task, CLASSES, None) == scores.MAIN_METRIC[task]
        assert scores.check_metric(task, CLASSES, scores.MAIN_METRIC[task]) == scores.MAIN_METRIC[task]


@pytest.mark.parametrize(
    ("task", "metric", "words"),
    [
        (Task.CLASSIFICATION, "f1", ["no metric of classification", "macro_f1", "kappa"]),
        (Task.CLASSIFICATION, "ece", ["lower", "accuracy"]),
        (Task.SEGMENTATION, "iou/glnd", ["no metric of segmentation", "iou/gland", "miou"]),
        (Task.NUCLEI, "miou", ["no metric of nuclei", "aji", "pq/gland"]),
    ],
)
def test_a_metric_that_cannot_choose(task, metric, words):
    with pytest.raises(ConfigError) as caught:
        scores.check_metric(task, TISSUES, metric)
    for word in words:
        assert word in str(caught.value)
    assert "ece," not in str(caught.value)


def test_one_class_may_choose():
    assert scores.check_metric(Task.SEGMENTATION, TISSUES, "dice/gland") == "dice/gland"
    assert scores.check_metric(Task.NUCLEI, ("a",), "pq/a") == "pq/a"
    with pytest.raises(ConfigError, match="mpq"):
        scores.check_metric(Task.NUCLEI, (), "mpq")  # of nuclei without types


@pytest.mark.parametrize("predictions", [classified(), segmented(), nuclei(), nuclei(types=("a", "b"))], ids=lambda p: p.task)
def test_names_are_those_that_come_out(predictions):
    names = scores.metrics_of(predictions.task, predictions.classes)
    assert list(scores.figures_of(predictions)) == list(names)
    assert all(scores.protocol_of(predictions.task, name) for name in names)


# ------------------------------------------------------------------------------------------------------------- validation


def test_a_validation():
    said = classified()
    figures = scores.validate(said, metric="kappa")
    assert figures["metric"] == figures["kappa"] == pytest.approx(scores.figures_of(said)["kappa"])
    assert figures["loss"] == pytest.approx(said.loss.mean())
    assert scores.validate(said, metric=None)["metric"] == figures["balanced_accuracy"]
    json.dumps(figures, allow_nan=False)


def test_a_metric_that_is_not_defined_never_wins():
    one_class = replace(classified(), arrays={**classified().arrays, "label": np.zeros(60, int)})
    figures = scores.validate(one_class, metric="auroc")
    assert figures["auroc"] is None
    assert figures["metric"] == -1.0  # as low as any metric gets: a kappa of -1
    json.dumps(figures, allow_nan=False)


def test_a_metric_that_needs_instances_where_only_pixels_were_counted():
    pixels_only = replace(nuclei(), arrays={"pixels": nuclei().arrays["pixels"]})
    assert scores.validate(pixels_only, metric="dice")["metric"] > 0
    with pytest.raises(ConfigError, match="'pq' was not measured"):
        scores.validate(pixels_only, metric="pq")


def test_nothing_to_judge():
    nothing = replace(classified().select([]), unreadable=(("a.png", "unreadable: broken"),))
    for judge in (
        scores.figures_of,
        lambda said: scores.validate(said, metric=None),
        lambda said: scores.evaluate([said]),
    ):
        with pytest.raises(DatasetError, match="a.png: unreadable: broken"):
            judge(nothing)
    with pytest.raises(DatasetError, match="no predictions"):
        scores.evaluate([])


def test_in_words():
    line = {"step": 7, "epoch": 2.0, "metric": 0.5, "loss": 0.25, "miou": 0.5, "dice": None, "iou/gland": 0.4, "best_step": 3}
    assert scores.in_words(line) == "epoch 2: loss 0.250, miou 0.500, dice -"


# -------------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("make", [classified, segmented, nuclei], ids=["classification", "segmentation", "nuclei"])
def test_an_evaluation_of_seeds(make):
    runs = [make(seed) for seed in range(3)]
    found = scores.evaluate(runs, **FEW)
    single = [scores.figures_of(run) for run in runs]
    for name, figure in found.items():
        values = [each[name] for each in single]
        assert figure["value"] == pytest.approx(np.mean(values))
        assert figure["std"] == pytest.approx(np.std(values, ddof=1))
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert (figure["seeds"], figure["samples"], figure["groups"]) == (3, len(runs[0]), len(set(runs[0].groups)))
    json.dumps(found, allow_nan=False)


def test_one_run_has_no_spread_over_seeds():
    assert {figure["std"] for figure in scores.evaluate([classified()], **FEW).values()} == {None}


@pytest.mark.parametrize("make", [classified, segmented, nuclei], ids=["classification", "segmentation", "nuclei"])
def test_the_interval_is_that_of_a_naive_loop_over_groups(make):
    runs = [make(seed) for seed in range(2)]
    found = scores.evaluate(runs, num_bootstraps=80, seed=3)
    group_of, num_groups = index_groups(runs[0].groups)
    drawn = []
    for weights in np.concatenate(list(draw_weights(num_groups, 80, 3, rows_at_once=80))):
        rows = [
            row for group, times in enumerate(weights) for _ in range(int(times)) for row in np.flatnonzero(group_of == group)
        ]
        drawn.append([scores.figures_of(run.select(rows)) for run in runs])
    for name, figure in found.items():
        means = [np.mean([each[name] for each in seeds]) for seeds in drawn]
        assert [figure["low"], figure["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-5)


def test_intervals_are_reproducible_and_follow_the_seed():
    assert scores.evaluate([classified()], **FEW) == scores.evaluate([classified()], **FEW)
    assert scores.evaluate([classified()], **FEW) != scores.evaluate([classified()], **FEW, seed=1)


def test_the_order_of_rows_does_not_matter():
    turned = classified().select(range(59, -1, -1))
    assert scores.evaluate([turned], **FEW) == scores.evaluate([classified()], **FEW)
    mixed = scores.evaluate([classified(0), classified(1).select(range(59, -1, -1))], **FEW)
    assert mixed == scores.evaluate([classified(0), classified(1)], **FEW)


def test_one_group_is_said_to_be_one():
    alone = replace(classified(), groups=("patient 0",) * 60)
    figure = scores.evaluate([alone], **FEW)["accuracy"]
    assert figure["groups"] == 1
    assert figure["low"] < figure["value"] < figure["high"]


def test_what_is_not_defined_is_null():
    one_class = replace(classified(), arrays={**classified().arrays, "label": np.zeros(60, int)})
    figure = scores.evaluate([one_class], **FEW)["auroc"]
    assert (figure["value"], figure["low"], figure["high"]) == (None, None, None)


# ------------------------------------------------------------------------------------------------------------ comparisons


def test_a_difference_is_paired():
    ours, theirs = [classified(0, skill=1.6), classified(1, skill=1.6)], [classified(0, skill=1.5), classified(1, skill=1.5)]
    found = scores.compare(ours, theirs, **FEW)
    mine, yours = scores.evaluate(ours, **FEW), scores.evaluate(theirs, **FEW)
    for name, figure in found.items():
        assert figure["difference"] == pytest.approx(mine[name]["value"] - yours[name]["value"])
        assert figure["low"] <= figure["high"]
    # The same hard samples are hard for both: the difference is known far better than either figure.
    width = found["auroc"]["high"] - found["auroc"]["low"]
    assert width < 0.3 * (mine["auroc"]["high"] - mine["auroc"]["low"])
    json.dumps(found, allow_nan=False)


def test_a_run_against_itself_differs_by_nothing():
    for figure in scores.compare([classified()], [classified()], **FEW).values():
        assert (figure["difference"], figure["low"], figure["high"]) == (0, 0, 0)


def test_swapping_sides_turns_the_sign():
    one, other = (
        scores.compare([classified(0)], [classified(1)], **FEW),
        scores.compare([classified(1)], [classified(0)], **FEW),
    )
    for name in one:
        assert one[name]["difference"] == pytest.approx(-other[name]["difference"])
        assert one[name]["low"] == pytest.approx(-other[name]["high"])


def test_several_groups_at_once_are_each_as_alone():
    groups = {"a": [classified(0)], "b": [classified(1), classified(2)], "c": [classified(3)]}
    found = scores.evaluate_all(groups, **FEW)
    assert list(found) == list(groups)
    assert found["a"]["against_first"] is None
    for name in "bc":
        assert found[name]["figures"] == scores.evaluate(groups[name], **FEW)
        assert found[name]["against_first"] == scores.compare(groups[name], groups["a"], **FEW)


# -------------------------------------------------------------------------------------------------------- what is refused


def test_runs_on_other_samples_are_refused():
    with pytest.raises(DatasetError, match=r"(?s)different samples.*only run 1 has 2: images/000.png, images/001.png"):
        scores.evaluate([classified(), classified(1).select(range(2, 60))])
    with pytest.raises(DatasetError, match="only run 2 has 57: .* and 54 more"):
        scores.evaluate([classified().select(range(3)), classified(1)])
    with pytest.raises(DatasetError, match="only run 2 has 1"):
        scores.compare([classified()], [classified(num_samples=60).select(range(59))])


def test_other_labels_or_groups_are_refused():
    labels = classified().arrays["label"].copy()
    labels[4] = (labels[4] + 1) % 3
    relabelled = replace(classified(), arrays={**classified().arrays, "label": labels})
    with pytest.raises(DatasetError, match="1 have another group or label: images/004.png"):
        scores.evaluate([classified(), relabelled])
    regrouped = replace(classified(), groups=("x", *classified().groups[1:]))
    with pytest.raises(DatasetError, match="1 have another group or label: images/000.png"):
        scores.evaluate([classified(), regrouped])


def test_other_tasks_and_classes_are_refused():
    with pytest.raises(DatasetError, match="learned different things.*number 2 segmentation"):
        scores.evaluate([classified(), segmented()])
    with pytest.raises(DatasetError, match="number 2 classification of a, b, c"):
        scores.evaluate([classified(), classified(classes=("a", "b", "c"))])


def test_runs_of_which_one_was_judged_by_pixels_only_are_refused():
    pixels_only = replace(nuclei(), arrays={"pixels": nuclei().arrays["pixels"]})
    with pytest.raises(DatasetError, match="match"):
        scores.evaluate([nuclei(), pixels_only])


def test_classes_spelt_in_two_ways_compare():
    ours, theirs = nuclei(types=("other", "spindle")), nuclei(1, types=("miscellaneous", "Spindle-shaped"))
    found = scores.evaluate([ours, theirs], **FEW)
    assert found.keys() == scores.figures_of(ours).keys() and found["pq/spindle"]["seeds"] == 2
    assert scores.compare([theirs], [ours], **FEW).keys() == scores.figures_of(ours).keys()


def test_runs_of_an_earlier_version_are_compared_by_what_all_have():
    types = ("a", "b")
    old = nuclei(1, types=types).without(LATER)
    assert set(scores.figures_of(old)) == set(scores.metrics_of(Task.NUCLEI, types)) - {
        "ece",
        "aji_plus",
        "hovernet_fd",
        "hovernet_fc/a",
        "hovernet_fc/b",
    }
    found = scores.evaluate([nuclei(types=types), old], **FEW)
    assert found.keys() == scores.figures_of(old).keys()
    assert scores.compare([old], [nuclei(types=types)], **FEW).keys() == found.keys()


# ------------------------------------------------------------------------------------------------------ confusion matrices


def test_confusion_is_summed_over_runs():
    runs = [classified(0), classified(1)]
    confusion = scores.confusion_of(runs)
    assert confusion.sum() == 120
    labels = runs[0].arrays["label"]
    assert confusion.sum(1).tolist() == [2 * (labels == index).sum() for index in range(3)]
    hits = sum((run.arrays["probs"].argmax(1) == labels).sum() for run in runs)
    assert np.trace(confusion) == hits
    pixels = scores.confusion_of([segmented(0), segmented(1)])
    assert (pixels == segmented(0).arrays["confusion"].sum(0) + segmented(1).arrays["confusion"].sum(0)).all()


def test_every_value_is_finite_or_none():
    typed = nuclei(types=("a", "b"))
    typed.arrays["match_by_type"][:, 1] = 0  # a type that is nowhere
    figures = scores.evaluate([typed], **FEW)
    assert figures["pq/b"]["value"] is None
    assert all(value is None or math.isfinite(value) for figure in figures.values() for value in figure.values())
