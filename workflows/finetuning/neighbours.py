"""What the layers of a model know before it is fine-tuned: a table, and neighbours.json."""

import os
from typing import Any

import torch

from csat.evaluation import scores
from csat.evaluation.neighbours import NUM_NEIGHBOURS, classes_of, judge_layers
from csat.evaluation.tables import align, with_limits
from csat.labels.datasets.contract import Decoded, Sample
from csat.model.files import load_exported
from csat.model.registry import build_model
from csat.runs.folder import RunFolder
from workflows.finetuning.config import FinetuneConfig
from workflows.shell import output
from workflows.shell.decode_samples import Prepared
from workflows.shell.progress import Progress

METRICS = ("balanced_accuracy", "accuracy", "auroc")


def judge_neighbours(config: FinetuneConfig, prepared: Prepared) -> None:
    """Judge every layer of the model as it starts; what it comes to is printed and written to neighbours.json."""
    data, folder = prepared.data, RunFolder(config.run_folder)
    torch.set_num_threads(os.cpu_count() or 1)  # nothing else works now
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, data.info, load=load_exported)
    source, index_of = prepared.source(), {sample.key: index for index, sample in enumerate(data.samples)}
    total = len(data.splits["train"]) + len(data.splits["test"])
    with Progress("looking at the layers", total=total, unit="image") as progress:
        num_seen = 0

        def decode(sample: Sample) -> Decoded:
            nonlocal num_seen
            num_seen += 1
            progress.show(num_seen)
            return source.get(index_of[sample.key])

        said = judge_layers(model, data.splits, decode, data.info, tile_px=config.data.tile_px, fit=config.data.fit)
    options = {"num_bootstraps": config.num_bootstraps, "seed": config.train.seed}
    figures = {name: scores.evaluate([each], **options) for name, each in said.items()}
    result: dict[str, Any] = {
        "neighbours": NUM_NEIGHBOURS,
        "classes": classes_of(data.info),
        "layers": {name: {"stride_px": model.layers[name].stride_px, "figures": each} for name, each in figures.items()},
    }
    folder.write_json("neighbours.json", result)
    lines = [("layer", "stride, px", *METRICS)]
    for name, each in figures.items():
        cells = [with_limits(each[metric]["value"], each[metric]["low"], each[metric]["high"]) for metric in METRICS]
        lines.append((name, str(model.layers[name].stride_px), *cells))
    about = f"test, by the {NUM_NEIGHBOURS} nearest neighbours in train; nothing was trained"
    output.result(f"{about}\n{align(lines)}\n\nfigures: {folder.path('neighbours.json')}", run_folder=folder.uri, **result)
