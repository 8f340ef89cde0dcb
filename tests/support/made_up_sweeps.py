"""Run folders of trials that never ran, with known figures: for what reads a sweep and draws its tables."""

import json

from csat.evaluation.predictions import write_predictions
from csat.runs.folder import RunFolder
from tests.support.made_up import CLASSES, classified


def write_trial(uri, metrics=(), *, state="finished", error=None):
    """A run folder with one validation per epoch."""
    folder = RunFolder(str(uri))
    about = {"error": error} if error else {}
    if state == "pruned":
        about |= {"epoch": float(len(metrics)), "metric": metrics[-1]}
    folder.set_status(state, **about)
    best = [max(metrics[: index + 1]) for index in range(len(metrics))]
    lines = [
        {"step": 10 * epoch, "epoch": float(epoch), "metric": metric, "best_metric": top}
        for epoch, (metric, top) in enumerate(zip(metrics, best, strict=True), start=1)
    ]
    folder.write_text("validation.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder.uri


def write_seed(uri, *, seed=0, skill=1.5, part="test", images_per_s=100.0, num_samples=60):
    """A finished run with predictions."""
    write_trial(uri, [0.5])
    folder = RunFolder(str(uri))
    write_predictions(folder.path("predictions", f"{part}.parquet"), classified(seed, skill=skill, num_samples=num_samples))
    cost = {"params": 2_500_000, "macs": 400_000_000, "images_per_s": images_per_s}
    about = {"task": "classification", "classes": CLASSES, "metric": "balanced_accuracy"}
    folder.write_json("evaluation.json", {**about, "cost": cost})
    folder.write_text("config.yaml", "{}")
    return folder.uri
