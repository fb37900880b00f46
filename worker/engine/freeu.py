"""FreeU: Si et al. 2023 (https://arxiv.org/abs/2309.11497). Amplify the backbone, damp the skip's low frequencies."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FreeU:
    """`backbone` scales half of the channels that come up; `skip` scales the lowest frequencies of the skip."""

    backbone: float
    skip: float

    def __call__(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        half = x.shape[1] // 2
        x = torch.cat([x[:, :half] * self.backbone, x[:, half:]], dim=1)
        return x, scale_low_frequencies(skip, self.skip)


def scale_low_frequencies(x: Tensor, scale: float, radius: int = 1) -> Tensor:
    """Multiply the 2·radius × 2·radius frequencies around zero by `scale`: [B, C, h, w] → the same shape and dtype.

    In float32, whatever the input: a half-precision transform is unstable, and none exists for bfloat16.
    """
    height, width = x.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    gain = torch.ones(height, width, device=x.device)
    top, left = height // 2, width // 2
    gain[top - radius : top + radius, left - radius : left + radius] = scale
    shifted_back = torch.fft.ifftshift(spectrum * gain, dim=(-2, -1))
    return torch.fft.ifftn(shifted_back, dim=(-2, -1)).real.to(x.dtype)
