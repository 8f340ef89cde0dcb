"""Colour and stain augmentation of the student's tile: the teacher sees the slide as it was scanned.

Colours are an affine map of a pixel's three values, first of its optical densities (stain), then of its intensities
(brightness, saturation, contrast). So each tile needs two 3x3 matrices, whatever the number of settings. Sharpness comes last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csat.views.colour_config import ColourConfig
from csat.views.draws import uniforms

# Optical density of haematoxylin, eosin and DAB in R, G, B: Ruifrok and Johnston 2001, rows of unit length.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
DARKEST = 1 / 255  # an intensity of 0 has no logarithm
COLOUR_STREAM = 1  # which of a tile's random streams picks its colours
NUM_DRAWS = 10
DETAIL_SIGMA_PX = 1.5
DETAIL_REACH_PX = 4  # of the kernel to each side


class ColourAugment(nn.Module):
    """Changes each tile's stains and colours by amounts that follow from its position alone.

    Stain: the densities are unmixed into haematoxylin, eosin and a residual, each scaled and shifted, and mixed again (Tellez
    et al. 2018, "Whole-slide mitosis detection ...", H&E augmentation; their alpha and beta). Differs: natural-logarithm
    densities and unit stain vectors, so that the shift is a density.
    """

    def __init__(self, config: ColourConfig):
        super().__init__()
        self.config = config
        mix = torch.tensor(STAINS, dtype=torch.float64)
        mix = (mix / mix.norm(dim=1, keepdim=True)).T  # densities = mix @ amounts
        self.register_buffer("mix", mix.float(), persistent=False)
        self.register_buffer("unmix", torch.linalg.inv(mix).float(), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA), persistent=False)
        offsets = torch.arange(-DETAIL_REACH_PX, DETAIL_REACH_PX + 1)
        blur = torch.exp(-0.5 * (offsets / DETAIL_SIGMA_PX) ** 2)
        self.register_buffer("blur", (blur / blur.sum()).expand(3, 1, 1, -1).clone(), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, positions: Tensor, seed: int) -> Tensor:
        """Augment a batch.

        Args:
            images: float `[B, 3, H, W]`, RGB in [0, 1].
            positions: int64 `[B]`, on the device of `images`.
            seed: The run's seed.

        Returns:
            float32 `[B, 3, H, W]` in [0, 1].
        """
        if self.config.is_identity:
            return images.float()
        draws = 2 * uniforms(positions, NUM_DRAWS, seed=seed, stream=COLOUR_STREAM) - 1
        with torch.autocast(images.device.type, enabled=False):
            pixels = images.float().flatten(2)  # [B, 3, HW]
            if self.config.stain_scale or self.config.stain_shift:
                pixels = self._change_stain(pixels, draws[:, 0:3], draws[:, 3:6])
            seen = self._change_colour(pixels, *draws[:, 6:9].unbind(1)).view(images.shape)
            return self._change_sharpness(seen, draws[:, 9]) if self.config.sharpness else seen

    def _change_stain(self, pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """`I' = exp(-(mix (a * unmix D + b)))` with `D = -log I`; a, b per tile and stain, `[B, 3]`."""
        amounts = 1 + self.config.stain_scale * scale
        change = self.mix @ (amounts[:, :, None] * self.unmix)
        shift = self.mix @ (self.config.stain_shift * shift)[:, :, None]
        # Both signs of D = -log I cancel: the matrix acts on log I, and the shift is subtracted.
        return torch.baddbmm(-shift, change, pixels.clamp_min(DARKEST).log_()).exp_().clamp_(max=1)

    def _change_colour(self, pixels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
        """Brightness, then saturation, then contrast, as one matrix and one offset per tile; `[B]` each."""
        brightness, contrast, saturation = (
            (1 + amount * draw)[:, None, None]
            for amount, draw in (
                (self.config.brightness, brightness),
                (self.config.contrast, contrast),
                (self.config.saturation, saturation),
            )
        )
        to_grey = self.luma.expand(3, 3)
        change = brightness * (saturation * torch.eye(3, device=pixels.device) + (1 - saturation) * to_grey)
        # Saturation leaves each pixel's grey where it was, so the mean grey that contrast turns about needs no second pass.
        mean_grey = brightness * (self.luma @ pixels.mean(dim=2)[:, :, None])[:, None]
        return torch.baddbmm((1 - contrast) * mean_grey, contrast * change, pixels).clamp_(0, 1)

    def _change_sharpness(self, images: Tensor, change: Tensor) -> Tensor:
        """Details, the difference from a blurred image, times a factor per tile; `change` `[B]`."""
        edges = F.pad(images, [DETAIL_REACH_PX] * 4, mode="replicate")
        blurred = F.conv2d(F.conv2d(edges, self.blur, groups=3), self.blur.transpose(2, 3), groups=3)
        amount = (1 + self.config.sharpness * change).clamp_min(0)[:, None, None, None]
        return torch.lerp(blurred, images, amount).clamp_(0, 1)
