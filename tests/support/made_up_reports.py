"""Every kind of report, of runs that never were: with names as long and as hostile as a file may have."""

from pathlib import Path

import numpy as np

from csat.evaluation import comparison
from csat.evaluation.judged_run import read_run
from csat.evaluation.reports.comparison import write_comparison_report
from csat.evaluation.reports.finetuning import write_finetuning_report
from csat.evaluation.reports.prediction import write_prediction_report
from csat.evaluation.reports.pretraining import write_pretraining_report
from csat.evaluation.reports.students import write_students_report
from csat.evaluation.reports.sweep import write_sweep_report
from csat.evaluation.sweep_table import Row
from csat.runs.folder import RunFolder
from csat.sweeps.space import Dimension
from csat.sweeps.trial import CellResult, Trial
from tests.support.made_up import classified, nuclei, pictures, segmented, write_run

EVIL = "<img src=x onerror=window.ran=1>"  # what a file may be called
LONG = "s3://bucket/" + "a_very_long_name_of_a_folder_without_any_blank/" * 4
RATE = {"tiles_per_s_per_actor": 100.0}
MADE_UP = {  # of a pretraining
    "accounts": {
        "epochs": [{"epoch": 0, "manifest": 4000, "trained": 3000, "quarantined": 1, "filtered": 0}],
        "not_used": [{"count_all": 1, "reason": EVIL, "status": "quarantined"}],
    },
    "throughput": {
        "student": {"params": 3e6, "macs": 1e9, "input_px": 64},
        "tiles_per_s": 9.0,
        "trainer_waiting_share": 0.1,
        "stages": {"student": {"workers": 1}, "read": RATE, "teacher": {"tiles_per_s_per_actor": None}},
        "trainer_peak_rss_bytes": 1e9,
        "object_store_peak_bytes": None,
        "spilled_bytes": None,
        "wall_s": 12.0,
        "attempts": 1,
    },
}
LINE = {"loss/csat": 1.0, "loss/nano": 2.0, "lr": 0.001, "tiles_per_s": 30.0, "wait_share": 0.1}
MAKERS = {"classification": classified, "segmentation": segmented, "nuclei": nuclei}


def pretraining(uri: Path) -> RunFolder:
    folder = RunFolder(str(uri))
    teacher = {"name": EVIL, "source": LONG, "weights_sha256": "0" * 64, "licence": EVIL, "mpp": None}
    folder.write_json("teacher.json", teacher)
    folder.write_json("manifest/index.json", {"slides": {"given": 2, "tiled": 1, "quarantined": 1}, "mpp": 0.5})
    folder.write_text("config.yaml", "{}\n")
    folder.write_text("quarantine.parquet", "")
    steps = np.arange(1, 60)
    lines = [
        {"step": int(step), "loss": 2 / step, "loss/np_bce": 1.5 / step, "loss/hv_mse": 0.5 / step, "lr": 0.001 / step}
        | {"tiles_per_s": 30 + 3 * np.sin(step), "wait_share": 0.1}
        for step in steps
    ]
    figure = {"value": 0.9, "low": 0.8, "high": 0.95, "tiles": 4, "groups": 2}
    names = ("student_vs_teacher.np.dice", "student_vs_teacher.hv.pearson", "student_vs_known.np.dice", EVIL)
    write_pretraining_report(
        folder,
        metrics=lines,
        **MADE_UP,
        evaluation=dict.fromkeys(names, figure),
        pictures=[_tile(seed) for seed in range(4)],
    )
    return folder


def students(uri: Path) -> RunFolder:
    """A pretraining of three students, one of which diverged; the page that compares them."""
    folder = pretraining(uri)
    names = ("student_vs_teacher.np.dice", "student_vs_teacher.hv.correlation", EVIL)
    compared = {}
    for index, name in enumerate(("csat", "nano", "broken")):
        value = 0.9 - 0.2 * index
        figure = {"value": value, "low": value - 0.05, "high": value + 0.03, "tiles": 4, "groups": 2}
        compared[name] = {
            "folder": f"students/{name}",
            "backbone": ("csat", "csat_nano", EVIL)[index],
            "downsample": 1 + index,
            **{"state": "trained", "steps": 9, "tiles": 3000},
            **{"params": 3e6 / 10**index, "macs": 1.4e9 / 10**index, "input_px": 64},
            **{"tiles_per_s": 40.0 * 3**index, "step_share": 0.7 - 0.3 * index},
            "fidelity": dict.fromkeys(names, figure),
        }
        folder.write_text(f"students/{name}/report.html", "")
    compared["broken"] |= {"state": "diverged", "error": f"step 7 (student): loss term {EVIL} is not finite", "fidelity": {}}
    folder.write_json("students.json", compared)
    pictures = {name: [_tile(seed) for seed in range(3)] for name in ("csat", "nano")}
    write_students_report(folder, compared, pictures=pictures)
    write_pretraining_report(
        folder, **MADE_UP, metrics=[{**LINE, "step": step} for step in range(5)], evaluation={}, pictures=[], students=compared
    )
    return folder


def _tile(seed: int) -> dict:
    rows, columns = np.mgrid[:64, :64]
    disc = ((rows - 30) ** 2 + (columns - 20 - 5 * seed) ** 2 < 150).astype(np.float32)
    noise = np.random.default_rng(seed).random((64, 64)).astype(np.float32)
    image = (255 - 120 * disc[..., None] - 30 * noise[..., None] * np.array([1, 2, 1])).clip(0, 255).astype(np.uint8)
    said = {"np": disc[None], "hv": np.stack([columns - 32, rows - 32]) / 32 * disc, "tp": np.stack([1 - disc, disc, noise])}
    answers = {f"{who}.{name}": value for name, value in said.items() for who in ("teacher", "student")}
    return {"slide": EVIL, "tile": image, "known": disc > 0, **answers}


def finetuning(uri: Path, task: str) -> RunFolder:
    classes = {} if task == "nuclei" else {"classes": (EVIL, "adenocarcinoma_of_the_lung", "squamous")}
    said = MAKERS[task](0, **classes)
    folder = write_run(uri, {"val": MAKERS[task](1, **classes), "test": said}, model=LONG)
    data = folder.read_json("data.json")
    data["sets"][0] |= {"licence": EVIL, "source": LONG, "note": EVIL}
    data["unreadable"] = [{"sample": LONG, "reason": EVIL}]
    folder.write_json("data.json", data)
    write_finetuning_report(folder, pictures=[{**each, "title": EVIL, "key": LONG} for each in pictures(said, 4)])
    return folder


def comparing(uri: Path, task: str) -> RunFolder:
    """Many groups that are nearly as good and as dear as each other."""
    names = ["student", "stain", EVIL, LONG, *(f"csat width {width}" for width in range(5))]
    groups = {}
    for number, name in enumerate(names):
        macs = 1_000_000_000 + 20_000_000 * number
        run = write_run(uri / "runs" / str(number), {"test": MAKERS[task](number)}, macs=macs, seed=number)
        groups[name] = [read_run(run.uri, "test")]
    metric = groups["student"][0].evaluation["metric"]
    result = comparison.compare_runs(groups, split="test", metric=metric, num_bootstraps=100)
    worst = comparison.worst_samples(groups, 3)
    result["worst"] = [{**sample, "key": LONG, "label": EVIL} for sample in worst]
    shown = [
        {"key": LONG, "image": each["image"], "true": each["true"], "said": dict.fromkeys(names[:3], each["said"])}
        for each in pictures(groups["student"][0].predictions, 3)
    ]
    folder = RunFolder(str(uri))
    for name in ("config.yaml", "evaluation.csv", "evaluation.json"):
        folder.write_text(name, "")
    write_comparison_report(folder, result, pictures=shown, why_no_pictures=None)
    return folder


def sweep(uri: Path) -> RunFolder:
    space = (
        Dimension(name="train.optim.lr", kind="loguniform", values=(1e-4, 1e-2)),
        Dimension(name="data.sampling", kind="choice", values=("natural", EVIL)),
    )
    trials = tuple(
        Trial(
            number=number,
            params={"train.optim.lr": 10 ** -(2 + number / 5), "data.sampling": ("natural", EVIL)[number % 2]},
            state="finished" if number else "failed",
            metric=0.5 + number / 30 if number else None,
            curve=tuple((float(epoch), 0.4 + epoch * number / 100) for epoch in range(1, 6)) if number else (),
            error=None if number else EVIL,
        )
        for number in range(9)
    )
    results = [
        CellResult(data_set="lung", start=EVIL, trials=trials, best=8, seeds=(LONG, LONG)),
        CellResult(data_set=LONG, start="none", trials=trials[:1], best=None, seeds=(), error=EVIL),
    ]
    row = Row(data_set="lung", start=EVIL, metric="dice", part="test", value=0.8, low=0.7, high=0.9, params=trials[8].params)
    folder = RunFolder(str(uri))
    for name in ("config.yaml", "table.csv", "table.json"):
        folder.write_text(name, "")
    write_sweep_report(folder, results=results, rows=[row, Row(data_set=LONG, start="none", note=EVIL)], space=space)
    return folder


def prediction(uri: Path) -> RunFolder:
    folder = RunFolder(str(uri))
    for name in ("config.yaml", "quarantine.parquet", "summary.parquet", "slides/one/nuclei.parquet"):
        folder.write_text(name, "")
    summary = {"tiles": 30, "tissue_mm2": 1.5, "nuclei": 1234, "per_mm2": 822.7, f"nuclei_{EVIL}": 1000, "per_mm2_b": None}
    record = {"tiles": 30, "predicted": 28, "quarantined": 1, "filtered": 1, "summary": summary}
    good = {**record, "name": "one", "files": ["nuclei.parquet"]}
    bad = {**record, "name": LONG, "files": [], "failed": EVIL, "summary": {"tiles": 30}}
    stage = {"busy_s": 3.0, "actors": 2, "busy_share": 0.5}
    tile = np.random.default_rng(0).integers(0, 256, (64, 136, 3), dtype=np.uint8)
    field = {"image": tile, "slide": LONG, "x_px": 1, "y_px": 2, "odd": 3.0, "told": EVIL}
    write_prediction_report(
        folder,
        model={
            "name": EVIL,
            "source": LONG,
            "licence": EVIL,
            "sha256": "0" * 64,
            "mpp": 0.5,
            "tile_px": 256,
            "classes": [EVIL],
        },
        accounts={
            "slides": {"given": 3, "tiled": 2, "quarantined": 1, "done": 2, "failed": 1},
            "tiles": {"manifest": 60, "predicted": 56, "quarantined": 2, "filtered": 2},
            "not_used": [{"reason": EVIL, "count": 2}],
        },
        throughput={
            "mm2_per_s": 0.1,
            "tiles_per_s": 9.0,
            "slides_per_hour": None,
            "stages": {"network": {**stage, "tiles_per_s_per_actor": 5.0}, "files": stage},
            "wall_s": 12.0,
            "attempts": 1,
        },
        records=[good, bad],
        pictures=[{**field, "kind": "typical"}, {**field, "kind": "odd"}],
    )
    return folder


KINDS = {
    "pretraining": pretraining,
    "students": students,
    "several": students,
    "prediction": prediction,
    "sweep": sweep,
    **{f"finetuning-{task}": lambda uri, task=task: finetuning(uri, task) for task in MAKERS},
    **{f"comparison-{task}": lambda uri, task=task: comparing(uri, task) for task in ("classification", "nuclei")},
}
PAGES = {"students": "students.html"}  # kind → the page of it that is looked at, where it is not report.html
