"""Guidance: how strongly the text pulls, as two forward passes or as an input of the network."""

import torch
import torch.nn.functional as F


def classifier_free_guidance(unconditional: torch.Tensor, conditional: torch.Tensor, scale: float) -> torch.Tensor:
    """ε = ε_u + s·(ε_c − ε_u) (Ho & Salimans, arXiv:2207.12598; s as the w of Imagen, arXiv:2205.11487, eq. 2)."""
    return unconditional + scale * (conditional - unconditional)


def guidance_scale_embedding(w: torch.Tensor, embedding_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """``[B]`` guidance scales to ``[B, embedding_dim]``: sines, then cosines, of 1000·w at geometric frequencies.

    The condition of guidance-distilled UNets (Meng et al., arXiv:2210.03142; `time_cond_proj_dim`). An odd dimension
    is padded with a zero.
    """
    half = embedding_dim // 2
    step = torch.log(torch.tensor(10000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=dtype) * -step)
    angles = (w * 1000.0).to(dtype)[:, None] * frequencies[None, :]
    return F.pad(torch.cat([torch.sin(angles), torch.cos(angles)], dim=1), (0, embedding_dim % 2))


def is_guided(scale: float, time_cond_proj_dim: int | None) -> bool:
    """Whether a step needs the unconditional pass: above 1, unless the network takes the scale as an input."""
    return scale > 1 and time_cond_proj_dim is None
