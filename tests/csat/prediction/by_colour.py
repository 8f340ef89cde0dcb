"""A model that says what the colours of an image say, so that a test knows what it should have said."""

import torch
from torch import nn

from csat.model.contract import Model
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.tasks import Task


class ByColour(nn.Module):
    """Says what the colours say: `mask` class 1 where red is above half, `np` likewise, `hv` is (green, blue) - 1/2."""

    downsample, see = 1, Model.see

    def __init__(self, responses, outside: float = 0.0):
        super().__init__()
        self.responses, self.outside = responses, outside
        self.num_tiles = 0

    def forward(self, images):
        self.num_tiles += len(images)
        red = (images[:, :1] - 0.5) * 40
        said = {
            "mask": torch.cat([torch.zeros_like(red), red], 1),
            "np": red,
            "hv": images[:, 1:] - 0.5,
            "label": torch.stack([torch.zeros(len(images)), red.mean((1, 2, 3)) / 4], 1),
        }
        for spec in self.responses:
            if spec.crop_px:  # as HoVer-Net: nothing on the margin
                inner = torch.full_like(said[spec.name], self.outside)
                inside = slice(spec.crop_px, -spec.crop_px)
                inner[..., inside, inside] = said[spec.name][..., inside, inside]
                said[spec.name] = inner
        return {spec.name: said[spec.name] for spec in self.responses}


def responses_of(task, crop_px=0):
    return {
        Task.CLASSIFICATION: (ResponseSpec(name="label", kind=Kind.LOGITS, channels=2, stride_px=None),),
        Task.SEGMENTATION: (ResponseSpec(name="mask", kind=Kind.LOGITS, channels=2, crop_px=crop_px),),
        Task.NUCLEI: (
            ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=crop_px),
            ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, crop_px=crop_px, symmetry=Symmetry.HV),
        ),
    }[task]
