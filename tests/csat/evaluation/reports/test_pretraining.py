import numpy as np

from csat.evaluation.reports.pretraining import write_pretraining_report
from csat.runs.folder import RunFolder


def test_a_pretraining_report_escapes_what_it_is_told(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    teacher = {
        "name": "<script>alert(1)</script>",
        "source": "a & b",
        "weights_sha256": "0" * 64,
        "licence": "CC0",
        "mpp": None,
    }
    folder.write_json("teacher.json", teacher)
    folder.write_json("manifest/index.json", {"slides": {"given": 2, "tiled": 1, "quarantined": 1}, "mpp": 0.5})
    line = {"step": 1, "loss": 1.0, "loss/np_bce": 0.7, "lr": 0.001, "tiles_per_s": 9.0, "wait_share": 0.1}
    write_pretraining_report(
        folder,
        metrics=[line, {**line, "step": 2, "loss": 0.5}],
        accounts={
            "epochs": [{"epoch": 0, "manifest": 4, "trained": 3, "quarantined": 1, "filtered": 0}],
            "not_used": [{"count_all": 1, "reason": "<b>missing</b>", "status": "quarantined"}],
        },
        throughput={
            "student": {"params": 3e6, "macs": 1e9, "input_px": 64},
            "tiles_per_s": 9.0,
            "trainer_waiting_share": 0.1,
            "stages": {
                "student": {"workers": 1},
                "read": {"tiles_per_s_per_actor": 100.0},
                "teacher": {"tiles_per_s_per_actor": None},
            },
            "trainer_peak_rss_bytes": 1e9,
            "object_store_peak_bytes": None,
            "spilled_bytes": None,
            "wall_s": 12.0,
            "attempts": 1,
        },
        evaluation={"student_vs_teacher.np.dice": {"value": 0.9, "low": 0.8, "high": 0.95, "tiles": 4, "groups": 2}},
        pictures=[
            {
                "slide": "a.svs",
                "tile": np.zeros((8, 8, 3), np.uint8),
                "teacher.np": np.zeros((1, 8, 8)),
                "student.np": np.ones((1, 8, 8)),
            }
        ],
    )
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<title>Pretraining report</title>" in page
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "1 × &lt;b&gt;missing&lt;/b&gt; (quarantined)" in page
    assert "0.800 – 0.950" in page
    assert page.count("data:image/png;base64,") == 1  # curves
    assert page.count("data:image/jpeg;base64,") == 3  # a tile, and what was said of it
