"""Small models whose answers differ from place to place, as trained ones' do, and real tiles to show them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from csat.model.registry import ModelConfig, build_model
from csat.model.student import Student, StudentConfig
from csat.prediction.answers import About, ModelAnswers
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.tasks import DatasetInfo, Task

HISTOLOGY = Path(__file__).parents[4] / "shared" / "data"
TILE_PX = 64
NUCLEI = (
    ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=6, channel_names=("nucleus",)),
    ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, crop_px=6, symmetry=Symmetry.HV),
    ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=3, crop_px=6, channel_names=("background", "one", "two")),
)
LABEL = (ResponseSpec(name="label", kind=Kind.LOGITS, channels=3, stride_px=None, channel_names=("fat", "gland", "tumour")),)
EMBEDDING = (ResponseSpec(name="features", kind=Kind.FEATURES, channels=12, stride_px=None),)
METADATA = {"tile_px": TILE_PX, "mpp": 0.5, "licence": "CC BY 4.0"}


def real_tiles(number: int = 12, edge: int = TILE_PX) -> np.ndarray:
    """uint8 `[number, edge, edge, 3]` of real histology; skips the test where that is not at hand."""
    files = sorted(HISTOLOGY.glob("consep/test/images/*")) or sorted(HISTOLOGY.glob("glas/images/*"))
    if not files:
        pytest.skip(f"no histology in {HISTOLOGY}")
    tiles = []
    for file in files:
        with Image.open(file) as opened:
            picture = np.asarray(opened.convert("RGB"))
        rows, columns = (range(0, size - edge + 1, edge) for size in picture.shape[:2])
        tiles += [picture[row : row + edge, column : column + edge] for row in rows for column in columns]
        if len(tiles) >= number:
            break
    return np.stack(tiles[:number])


def student(responses, *, backbone="csat_nano", downsample=1) -> Student:
    """Its norms have seen images, and its heads say different things of different places."""
    torch.manual_seed(0)
    model = Student(StudentConfig(backbone=backbone, decoder_channels=8, downsample=downsample), responses)
    return _used(model, [head.fc.weight for head in model.heads.values()])


def net(name: str, task: Task, **options):
    """A model of fine-tuning by its name."""
    torch.manual_seed(0)
    classes = ("one", "two")
    info = DatasetInfo(name="own", task=task, classes=classes, mpp=0.5, licence="CC BY 4.0", source="ours", group="patient")
    return _used(build_model(ModelConfig(name=name, options=options), info, None), [])


def answers_of(model, *, tile_px=TILE_PX) -> ModelAnswers:
    about = About(name="ward 7", source="/runs/ward-7", licence="CC BY 4.0", sha256="ab" * 32)
    return ModelAnswers(model, tile_px=tile_px, metadata={**METADATA, "tile_px": tile_px}, about=about)


def _used(model, heads):
    for weight in heads:
        nn.init.normal_(weight, std=0.2)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 96, 96) * torch.linspace(0.4, 1, 4).view(-1, 1, 1, 1))
    return model.eval()
