import json
import re
from dataclasses import replace

import pytest

from csat.evaluation.reports.finetuning import write_finetuning_report
from tests.support.made_up import classified, nuclei, pictures, segmented, write_run

EVIL = "<script>alert(1)</script>"
IMAGE = re.compile(r'src="data:image/(png|jpeg);base64,')


def render(tmp_path, parts, *, num_pictures=3, **more) -> str:
    folder = write_run(tmp_path / "run", parts, **more)
    write_finetuning_report(folder, pictures=pictures(next(reversed(parts.values())), num_pictures))
    return (tmp_path / "run" / "report.html").read_text()


def test_a_classification(tmp_path):
    page = render(tmp_path, {"val": classified(1), "test": classified(0)})
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())["test"]
    for name in ("accuracy", "balanced_accuracy", "auroc", "kappa", "ece"):
        figure = figures[name]
        assert name in page
        assert f"{figure['value']:.3f}" in page
        assert f"{figure['low']:.3f} … {figure['high']:.3f}" in page
    assert IMAGE.findall(page) == ["png", "png", "jpeg", "jpeg", "jpeg", "png"]  # confusion, reliability, pictures, curves
    for text in ("2.940 M", "1.180 GMAC at 224 px", "25.7 images/s", "CC0", "nothing of it is real", "60 images of 12 groups"):
        assert text in page
    assert "images/broken.png" in page
    assert "few groups" in page


@pytest.mark.parametrize(
    ("make", "images"),
    [(segmented, ["png", "jpeg", "jpeg", "jpeg", "png"]), (nuclei, ["jpeg", "jpeg", "jpeg", "png"])],
    ids=["segmentation", "nuclei"],
)
def test_other_tasks(tmp_path, make, images):
    page = render(tmp_path, {"val": make(1), "test": make(0)})
    assert IMAGE.findall(page) == images
    assert "Left: the image" in page
    assert ('class="swatch"' in page) == (make is segmented)


def test_without_a_test_part_it_says_so(tmp_path):
    page = render(tmp_path, {"val": classified()})
    assert "There is no test part" in page
    assert "val part" in page


def test_one_group_is_a_warning(tmp_path):
    page = render(tmp_path, {"test": replace(classified(), groups=("patient 0",) * 60)})
    assert "There is one group only" in page


def test_what_is_not_defined_is_a_dash(tmp_path):
    alone = classified()
    alone.arrays["label"][:] = 0
    page = render(tmp_path, {"test": alone})
    assert re.search(r"<td>auroc</td>\s*<td class=\"n\">–</td><td class=\"n\">–</td>", page)


def test_nothing_from_outside_is_markup(tmp_path):
    said = classified(classes=(EVIL, "b", "c"))
    said = replace(said, keys=tuple(EVIL + key for key in said.keys))
    folder = write_run(tmp_path / "run", {"test": said}, model=EVIL)
    data = folder.read_json("data.json")
    for key in ("name", "group"):
        data[key] = EVIL
    for key in ("name", "licence", "source", "note"):
        data["sets"][0][key] = EVIL
    data["unreadable"] = [{"sample": EVIL, "reason": EVIL}]
    folder.write_json("data.json", data)
    folder.write_json("exported/config.json", {"metadata": {"started_from": {"run": EVIL, "teacher": {"name": EVIL}}}})
    shown = [{**each, "title": EVIL} for each in pictures(said, 2)]
    write_finetuning_report(folder, pictures=shown)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10


def test_samples_are_counted_by_class_and_the_start_is_told(tmp_path):
    folder = write_run(tmp_path / "run", {"test": classified()})
    rows = ["image,part,sample,group,label,mpp,reason", "a.png,train,a,g,benign,,", "b.png,train,b,g,squamous,,"]
    folder.write_text("samples.csv", "\n".join([*rows, "c.png,test,c,h,benign,,", "d.png,test,d,h,benign,,"]) + "\n")
    data = folder.read_json("data.json")
    data["parts"] = {"train": {"samples": 2, "groups": ["g"]}, "test": {"samples": 2, "groups": ["h"]}}
    folder.write_json("data.json", data)
    started_from = {"run": "runs/rckd", "teacher": {"name": "stain", "licence": "none needed"}, "mpp": None}
    folder.write_json("exported/config.json", {"metadata": {"started_from": started_from}})
    write_finetuning_report(folder, pictures=[])
    page = re.sub(r"\s+", " ", (tmp_path / "run" / "report.html").read_text())
    number = '<td class="n">{}</td>'.format
    assert f"<td>train</td>{number(2)}{number(1)} {number(1)}{number(0)}{number(1)}" in page
    assert f"<td>test</td>{number(2)}{number(1)} {number(2)}{number(0)}{number(0)}" in page
    assert "<td>start.run</td><td>runs/rckd</td>" in page
    assert "<td>start.teacher.name</td><td>stain</td>" in page
    assert "start.mpp" not in page
    assert "Where it is most wrong" not in page
