"""Figures of a prediction: seconds are those that stages told, shares lie between 0 and 1, and the busiest is named."""

from csat.columns import READ_S, TEACHER_S
from workflows.prediction.columns import FIRST, NETWORK, OUTLINE_S, OUTLINER, READER, STOP
from workflows.prediction.flow import Flow, waited


def test_what_stages_told_adds_up():
    flow = Flow()
    for number in range(4):
        row = {FIRST: 10 * number, STOP: 10 * number + 10, READ_S: 0.5, TEACHER_S: 2.0, OUTLINE_S: 0.0}
        flow.add_part({**row, READER: "a:1", NETWORK: f"a:{number % 2}", OUTLINER: "a:9"})
    flow.add_slide({"summary": {"seen_mm2": 1.5}, "assembly_s": 0.1})
    flow.add_slide({"summary": {"seen_mm2": None}, "assembly_s": 0.1})
    figures = flow.figures(max_slides=2)
    stages = figures["stages"]
    assert (figures["tiles"], figures["slides"], figures["mm2"]) == (40, 2, 1.5)
    assert stages["read"] == {"busy_s": 2.0, "actors": 1, "busy_share": 1.0, "tiles_per_s_per_actor": 20.0}
    assert stages["network"]["actors"] == 2 and stages["network"]["tiles_per_s_per_actor"] == 5.0
    assert stages["outlines"]["busy_share"] == 0.0 and stages["outlines"]["tiles_per_s_per_actor"] is None
    assert figures["steady_tiles_per_s"] == 30 / (figures["wall_s"] - figures["start_s"]), "the first part ends the start"


def test_an_attempt_that_had_nothing_to_do_has_figures():
    figures = Flow().figures(max_slides=2)
    assert figures["tiles"] == 0 and figures["start_s"] is None and figures["steady_tiles_per_s"] is None


def test_the_busiest_is_named_and_the_others_waited():
    said = waited({"read": {"busy_share": 0.1}, "network": {"busy_share": 0.95}, "files": {"busy_share": 0.25}})
    assert said == "network was busy for 95% of the time; the others waited: read 90%, files 75%"
