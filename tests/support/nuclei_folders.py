"""Labelled nuclei on disk: synthetic tissue whose nuclei are known, and students that have learned nothing of them."""

from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from csat.model.files import save_model
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.runs.folder import RunFolder
from csat.slides.synthetic import paint

NUCLEI = (
    ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, stride_px=1),
    ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, stride_px=1, symmetry=Symmetry.HV),
)
TYPES = ResponseSpec(
    name="tp", kind=Kind.PROBABILITY, channels=3, stride_px=1, channel_names=("background", "dead", "epithelial")
)


def make_nuclei(folder: Path, *, num_images: int = 3, size_px: int = 128) -> dict:
    """`images/N.png` and numbered `masks/N.png`, 0.5 um/px. Returns it as a set of data.sets."""
    for number in range(num_images):
        image, labels = paint(size_px, mpp=0.5, seed=7, index=number)
        for name, pixels in (("images", image), ("masks", labels.astype(np.uint16))):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return {"path": str(folder), "layout": "pairs", "options": {"mpp": 0.5}}


def write_student(uri: Path, *responses: ResponseSpec, mpp: float = 0.5, tile_px: int = 64, seed: int = 0) -> str:
    """A run folder as pretrain.py leaves it."""
    torch.manual_seed(seed)
    folder = RunFolder(str(uri))
    student = Student(StudentConfig(backbone="csat_nano", decoder_channels=8), responses or NUCLEI)
    save_model(student.eval(), folder.path("exported"), {"mpp": mpp, "tile_px": tile_px, "method": "rckd"})
    run = {"slides": ["x"], "student": {"backbone": "csat_nano"}, "train": {"seed": seed, "precision": "float32"}}
    folder.write_text("config.yaml", yaml.safe_dump(run))
    folder.set_status("finished")
    return folder.uri
