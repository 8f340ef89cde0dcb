"""A slide of a million nuclei through all of predict.py: seconds, and the most memory of each kind of process.

    python -m tests.support.dense_slide 1000000

Nuclei are dark discs of 5 px on a grid of 8 px, moved a little; a TorchScript model of two convolutions finds them, so that
the time is that of reading, post-processing and writing. The texture repeats.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
import tifffile
import torch
from torch import Tensor, nn

from tests.support.verbs import ROOT

STEP_PX, TEXTURE_PX, RADIUS_PX, MPP = 8, 1024, 2.5, 0.5
REACH_PX = 4  # from a pixel to the others of its nucleus, at most


class Dots(nn.Module):
    """`np`, which is 1 where it is dark, and `hv`, how far a pixel lies from the mean place of the dark ones around it."""

    def __init__(self):
        super().__init__()
        offset = torch.arange(-REACH_PX, REACH_PX + 1).float()
        near = ((offset[:, None] ** 2 + offset**2) <= REACH_PX**2).float()
        kernels = torch.stack([near, near * offset, near * offset[:, None]])[:, None]
        self.register_buffer("kernels", kernels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        dark = (images.mean(1, keepdim=True) < 150).float()
        sums = nn.functional.conv2d(dark, self.kernels, padding=4)
        hv = -sums[:, 1:] / sums[:, :1].clamp_min(1.0) / 2.5
        return dark, hv.clamp(-1.0, 1.0) * dark


def write_model(folder: Path, tile_px: int) -> Path:
    """The TorchScript file with its JSON."""
    torch.jit.script(Dots()).save(str(folder / "dots.pt"))
    outputs = [
        {"name": "np", "kind": "probability", "channels": 1, "stride_px": 1, "symmetry": "scalar"},
        {"name": "hv", "kind": "regression", "channels": 2, "stride_px": 1, "symmetry": "hv"},
    ]
    (folder / "dots.json").write_text(json.dumps({"mpp": MPP, "tile_px": tile_px, "outputs": outputs}))
    return folder / "dots.pt"


def write_slide(folder: Path, num_nuclei: int) -> Path:
    """A square slide of at least so many."""
    rng = np.random.default_rng(0)
    per_side = TEXTURE_PX // STEP_PX
    centres = (np.arange(per_side) + 0.5) * STEP_PX
    y, x = (each.ravel() + rng.uniform(-0.6, 0.6, per_side**2) for each in np.meshgrid(centres, centres, indexing="ij"))
    rows, columns = np.mgrid[:TEXTURE_PX, :TEXTURE_PX].reshape(2, -1)
    cell = rows // STEP_PX * per_side + columns // STEP_PX
    is_dark = (rows - y[cell]) ** 2 + (columns - x[cell]) ** 2 <= RADIUS_PX**2
    texture = np.where(is_dark[:, None], (90, 60, 140), (235, 180, 210)).astype(np.uint8).reshape(TEXTURE_PX, TEXTURE_PX, 3)
    side = -(-int(np.ceil((num_nuclei / per_side**2) ** 0.5 * TEXTURE_PX)) // TEXTURE_PX)
    resolution = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    path = folder / "dense.tif"
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, np.tile(texture, (side, side, 1)), **options, **resolution)
    return path


def measure(command: list[str], log: Path) -> dict:
    """Seconds of a command, and the most MiB (resident) of each kind of process below it."""
    started, most = time.monotonic(), defaultdict(int)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "RAY_AUTH_MODE": "disabled"}
        )
    verb = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            for each in (verb, *verb.children(recursive=True)):
                name = "driver" if each == verb else _kind(" ".join(each.cmdline()))
                most[name] = max(most[name], each.memory_info().rss // 2**20)
        except psutil.Error:  # one that has just ended
            pass
        time.sleep(0.1)
    return {"code": process.returncode, "seconds": round(time.monotonic() - started, 1), "mib": dict(sorted(most.items()))}


def _kind(title: str) -> str:
    """What Ray calls a process; all of Ray's own are one kind."""
    found = re.match(r"ray::(?:MapWorker\(MapBatches\()?(\w+)", title)
    return found.group(1) if found else "Ray's own"


def main(num_nuclei: int, tile_px: int = 512) -> dict:
    with tempfile.TemporaryDirectory(prefix="csat-dense-") as scratch:
        folder = Path(scratch)
        slide, model = write_slide(folder, num_nuclei), write_model(folder, tile_px)
        command = [sys.executable, "workflows/predict.py", "--model", "torchscript", "--model.weights", str(model)]
        command += ["--slides", str(slide), "--output", str(folder / "out"), "--data.min_tissue", "0"]
        command += ["--network.batch_size", "8"]
        figures = measure(command, folder / "log")
        if figures["code"]:
            raise SystemExit((folder / "log").read_text()[-3000:])
        record = json.loads((folder / "out" / "done" / "000000.json").read_text())
        rates = json.loads((folder / "out" / "throughput.json").read_text())
        figures |= {"nuclei": record["summary"]["nuclei"], "tiles": record["tiles"], "files": record["files"]}
        return figures | {"files_s": round(record["assembly_s"], 1), "stages": rates["stages"]}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1])), indent=2))
