"""A watch on the base weights: after any number of LoRAs they must be, bit for bit, what was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.engine import StableDiffusionInpaintPipeline
from worker.engine.lora import LoraMerger

# Bytes looked at in one check: about 20 ms of a CPU core, less than a millisecond of a GPU.
SAMPLE_BYTES = 64 * 1024**2
_BLOCK = 1 << 18  # words of 8 bytes summed at once: 2 MiB, which a cache holds


class WeightGuard:
    """Checksums of every weight and buffer as loaded, compared a sample at a time, in rotation.

    Made before the first LoRA. Where one is merged into a weight, the copy that it will be restored from is looked at,
    otherwise the weight itself and the copy.
    """

    def __init__(self, pipe: StableDiffusionInpaintPipeline, merger: LoraMerger, *, every: int):
        self._pipe, self._merger, self._every = pipe, merger, every
        self._loaded = {name: checksum(tensor) for name, tensor in _tensors(pipe)}
        self._order = sorted(self._loaded)
        self._next = self._swaps = 0

    def swapped(self) -> list[str]:
        """To be called after each swap: at every `every`-th (0: never) a sample is checked; names that drifted."""
        self._swaps += 1
        return self.check() if self._every and self._swaps % self._every == 0 else []

    def check(self, sample_bytes: int = SAMPLE_BYTES) -> list[str]:
        """Names of weights, of the next ones in turn, that are no longer what was loaded, or no longer there."""
        now = dict(_tensors(self._pipe))
        kept = {id(weight): copies for weight, copies in self._merger.base_copies()}
        drifted, seen = [], 0
        for _ in self._order:
            name, self._next = self._order[self._next], (self._next + 1) % len(self._order)
            tensor = now.get(name)
            if tensor is None:
                drifted.append(name)
                continue
            copies = kept.get(id(tensor), (tensor,))
            if any(checksum(copy) != self._loaded[name] for copy in copies):
                drifted.append(name)
            seen += sum(copy.nbytes for copy in copies)
            if seen >= sample_bytes:
                break
        return drifted


def _tensors(pipe: StableDiffusionInpaintPipeline) -> Iterator[tuple[str, Tensor]]:
    for part, model in pipe.components.items():
        if isinstance(model, nn.Module):
            yield from chain(model.named_parameters(prefix=part), model.named_buffers(prefix=part))


@torch.no_grad()
def checksum(tensor: Tensor) -> str:
    """A hash of dtype, shape and values (as bits, in logical order), computed where the tensor lies.

    The bits are taken as 8-byte words wᵢ and summed in blocks, modulo 2⁶⁴, as Σ (2i + 1)·wᵢ. The factors are odd, so
    whatever changes one word changes the sum; they differ, so values that changed places are noticed as well.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if len(data) % 8 or data.storage_offset() % 8:  # cannot be read as words as it lies
        data = F.pad(data, (0, -len(data) % 8))
    words = data.view(torch.int64)
    factors = torch.arange(1, 2 * min(_BLOCK, len(words)) + 1, 2, device=data.device)
    sums = torch.stack([(block * factors[: len(block)]).sum() for block in words.split(_BLOCK)]).cpu()
    about = f"{tensor.dtype} {tuple(tensor.shape)} "
    return hashlib.sha256(about.encode() + sums.numpy().tobytes()).hexdigest()
