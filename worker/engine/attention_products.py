"""Ways to compute softmax(q kᵀ / √d) v. One signature: q [B, heads, N, d], k and v [B, heads, L, d] → [B, heads, N, d].

They agree but for rounding; they differ in memory and in what must be installed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.errors import FeatureUnavailable

AttentionProduct: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

scaled_dot_product: AttentionProduct = F.scaled_dot_product_attention


def sliced(size: int) -> AttentionProduct:
    """`size` of the B · heads products at a time: less memory where the kernel keeps the whole table of scores."""
    return partial(_sliced, size)


def _sliced(size: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    parts = zip(*(t.flatten(0, 1).split(size) for t in (query, key, value)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(q, k, v) for q, k, v in parts]).unflatten(0, query.shape[:2])


def xformers(attention_op: Any = None) -> AttentionProduct:
    """xFormers' memory-efficient attention (https://github.com/facebookresearch/xformers), with its choice of kernel.

    Raises `FeatureUnavailable` if the library is not installed or there is no CUDA device, which its kernels need.
    """
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError:
        raise FeatureUnavailable(
            "xformers is not installed: `pip install xformers`, or leave it out; torch's own attention is as fast"
        ) from None
    if not torch.cuda.is_available():
        raise FeatureUnavailable("xformers runs on CUDA devices only, and there is none here")

    def product(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))  # it wants [B, N, heads, d]
        return memory_efficient_attention(query, key, value, op=attention_op).transpose(1, 2)

    return product
