"""Predictions of models that never were, with known truth: for what judges models, compares runs and draws reports."""

import json
from typing import Any

import numpy as np

from csat.evaluation import scores
from csat.evaluation.predictions import Predictions, write_predictions
from csat.runs.folder import RunFolder
from csat.tasks import Task

CLASSES = ("benign", "adenocarcinoma", "squamous")
TISSUES = ("background", "gland")


def names(num_samples: int, per_group: int) -> dict[str, tuple[str, ...]]:
    """Keys in order, and a group for each `per_group` of them."""
    return {
        "keys": tuple(f"images/{index:03d}.png" for index in range(num_samples)),
        "groups": tuple(f"patient {index // per_group}" for index in range(num_samples)),
    }


def classified(
    seed: int = 0, *, num_samples: int = 60, per_group: int = 5, classes: tuple[str, ...] = CLASSES, skill: float = 1.5
) -> Predictions:
    """Softmax of noise plus `skill` for the right class; the truth does not depend on `seed`."""
    labels = np.random.default_rng(99).integers(len(classes), size=num_samples)
    logits = np.random.default_rng(seed).normal(size=(num_samples, len(classes)))
    logits[np.arange(num_samples), labels] += skill
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(
        task=Task.CLASSIFICATION,
        classes=classes,
        **names(num_samples, per_group),
        loss=-np.log(probs[np.arange(num_samples), labels]),
        arrays={"probs": probs.astype(np.float32), "label": labels},
    )


def segmented(seed: int = 0, *, num_samples: int = 12, per_group: int = 3, classes: tuple[str, ...] = TISSUES) -> Predictions:
    """Pixel counts, most of them on the diagonal."""
    rng = np.random.default_rng(seed)
    confusion = rng.integers(10, 200, size=(num_samples, len(classes), len(classes)))
    confusion += 600 * np.eye(len(classes), dtype=np.int64)
    return Predictions(
        task=Task.SEGMENTATION,
        classes=classes,
        **names(num_samples, per_group),
        loss=rng.random(num_samples),
        arrays={"confusion": confusion},
    )


def nuclei(seed: int = 0, *, num_samples: int = 12, per_group: int = 3, types: tuple[str, ...] = ()) -> Predictions:
    """Counts of images with about 20 nuclei each."""
    rng = np.random.default_rng(seed)
    found, extra, lost = rng.integers(10, 20, num_samples), rng.integers(0, 8, num_samples), rng.integers(0, 8, num_samples)
    pixels = np.stack([50 * found, 50 * extra, 50 * lost], 1)
    match = np.stack([found, extra, lost, 0.8 * found], 1).astype(np.float64)
    arrays = {
        "pixels": pixels,
        "calibration": np.stack(
            [
                np.stack([np.linspace(50, 400, 15), np.linspace(20, 380, 15), found[each] * np.arange(15)], 1)
                for each in range(num_samples)
            ]
        ),
        "aji": np.stack([pixels[:, 0], pixels.sum(1)], 1),
        "aji_plus": np.stack([pixels[:, 0] + 10, pixels.sum(1)], 1),
        "detection": np.stack([found, extra, lost], 1),
        "hovernet": np.stack([found - 1, extra + 1, lost + 1], 1),
        "match": match,
    }
    if types:
        arrays["match_by_type"] = np.stack([match / len(types)] * len(types), 1)
        arrays["hovernet_by_type"] = np.stack([np.stack([found - 2, extra, lost, extra, lost], 1)] * len(types), 1)
    return Predictions(
        task=Task.NUCLEI, classes=types, **names(num_samples, per_group), loss=rng.random(num_samples), arrays=arrays
    )


def pictures(predictions: Predictions, count: int = 4, *, size: tuple[int, int] = (90, 120)) -> list[dict[str, Any]]:
    """Of the samples that are most wrong, pink noise with two dark discs."""
    found = []
    rows, columns = np.mgrid[: size[0], : size[1]]
    first, second = ((rows - 40) ** 2 + (columns - x) ** 2 < 20**2 for x in (40, 80))
    for index in np.argsort(-predictions.loss)[:count]:
        image = np.random.default_rng(int(index)).integers(180, 255, (*size, 3), dtype=np.uint8)
        image[first | second] //= 2
        true, said = first + 2 * (second & ~first), np.roll(first, 6, 1).astype(int)
        if predictions.task == Task.SEGMENTATION:
            true, said = np.where(true > 1, 255, true), said
        if predictions.task == Task.CLASSIFICATION:
            true = said = None
        found.append(
            {
                "key": predictions.keys[index],
                "title": "what was labelled and said",
                "loss": float(predictions.loss[index]),
                "image": image,
                "true": true,
                "said": said,
            }
        )
    return found


def write_run(
    uri: Any,
    parts: dict[str, Predictions],
    *,
    model: str = "csat",
    metric: str | None = None,
    state: str = "finished",
    macs: int = 1_180_000_000,
    seed: int = 0,
) -> RunFolder:
    """A run folder as finetune.py leaves it, without weights."""
    folder = RunFolder(str(uri))
    first = next(iter(parts.values()))
    info = {
        "name": "made_up",
        "task": first.task,
        "classes": first.classes,
        "mpp": 0.5,
        "licence": "CC0",
        "source": "tests/support/made_up.py",
        "group": "patient",
        "note": "nothing of it is real",
    }
    about = {part: {"samples": len(said), "groups": sorted(set(said.groups))} for part, said in parts.items()}
    unreadable = [{"sample": "images/broken.png", "reason": "unreadable: cut off"}]
    folder.write_text("config.yaml", "data: {}\n")
    folder.write_json("data.json", {**info, "sets": [info], "parts": about, "unreadable": unreadable})
    steps = np.arange(1, 9)
    lines = [{"step": int(step), "epoch": step / 4, "loss": 1 / step, "lr": 0.001 * (9 - step)} for step in steps]
    folder.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    validations = [
        {"step": int(step), "epoch": step / 4, **scores.validate(first, metric=metric), "best_metric": 0.7, "best_step": 4}
        for step in steps[3::4]
    ]
    folder.write_text("validation.jsonl", "".join(json.dumps(line) + "\n" for line in validations))
    for part, said in parts.items():
        write_predictions(folder.path("predictions", f"{part}.parquet"), said)
    folder.write_json(
        "evaluation.json",
        {
            "task": first.task,
            "classes": first.classes,
            "metric": scores.check_metric(first.task, first.classes, metric),
            **{part: scores.evaluate([said], num_bootstraps=200) for part, said in parts.items()},
            "best_step": 4,
            "best_metric": 0.7,
            "seed": seed,
            "model": {"name": model, "init": "scratch", "from_run": None},
            "cost": {"params": 2_940_000, "macs": macs, "input_px": 224, "images_per_s": 25.7},
        },
    )
    folder.set_status(state)
    return folder
