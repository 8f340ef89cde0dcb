"""students.html: every student has its row, its place in the pictures and its part of each tile."""

from csat.evaluation.reports.students import write_students_report
from tests.support.made_up_reports import EVIL, students


def test_the_students_lie_beside_each_other(tmp_path):
    students(tmp_path)
    page = (tmp_path / "students.html").read_text()
    assert EVIL not in page and "&lt;img src=x" in page
    assert '<a href="students/csat/report.html">csat</a>' in page and "csat_nano, at 1/2" in page
    assert "students/broken/report.html" not in page and "broken diverged and was stopped after 3,000 tiles" in page
    assert page.count("data:image/png;base64,") == 2, "one for each figure of student and teacher"
    assert page.count("data:image/jpeg;base64,") == 3 * 4, "of each tile: itself, the teacher, and two students"
    assert '<th class="n wraps">vs teacher.<wbr>np.<wbr>dice</th>' in page, (
        "names of figures are long: they break at their dots"
    )
    for title in ("teacher: np", "csat: np", "nano: np"):
        assert f"<div>{title}</div>" in page
    report = (tmp_path / "report.html").read_text()
    assert 'href="students.html"' in report and "broken diverged" in report and "3 students, by" in report


def test_where_nothing_was_held_out_there_are_costs_alone(tmp_path):
    folder = students(tmp_path)
    compared = {name: {**each, "fidelity": {}} for name, each in folder.read_json("students.json").items()}
    write_students_report(folder, compared, pictures={"csat": [], "nano": []})
    page = (tmp_path / "students.html").read_text()
    assert "nothing is known about tiles" in page and "data:image/" not in page and "3.000" in page
