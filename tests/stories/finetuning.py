"""The command line of a small fine-tuning."""

import yaml

from csat.settings import merge

SMALL = {
    "model": {"name": "csat_nano", "decoder_channels": 8},
    "train": {"epochs": 3, "batch_size": 8, "log_every_steps": 1, "checkpoint_every_steps": 2, "optim": {"lr": 0.005}},
    "workers": {"cpus_per_worker": 0.25},
    "readers": {"max_actors": 1},
    "num_bootstraps": 200,
    "report_samples": 2,
}
TILE_PX = 32


def write_recipe(folder, *settings):
    """Command line of a run: a recipe with these settings."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(merge(SMALL, {"data": {"tile_px": TILE_PX, "memory_gb": 0.05}}, *settings)))
    return ["--config", str(path)]
