"""diffusers as a contender: each way it has to give a job its LoRA, at its best legal setting.

In evaluation mode without gradients, same threads, same dtype, in the memory layout that it is quicker in here. A LoRA
comes as tensors in RAM. The ways:

- `Hotswap`: `enable_lora_hotswap`, then `load_lora_weights(hotswap=True)`; a step goes on paying for the adapter
- `Resident`: `set_adapters`, where every LoRA was loaded before (not timed), the last few of them at a time
- `Fused`: `load_lora_weights`, `fuse_lora`; after the job `unfuse_lora`, `unload_lora_weights`: steps cost no more
- `Loaded`: `load_lora_weights`; after the job `unload_lora_weights`
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import diffusers
import torch
from torch import Tensor

from tests.benchmarks.options import Options
from tests.benchmarks.statistic import interleaved, on_device
from tests.benchmarks.topologies import Topology
from tests.benchmarks.work import Job, Lora
from worker.engine.lora.measure import forward_of

_RESIDENT = 4  # LoRAs in memory at once: each more costs memory, and the switch among them more time

diffusers.logging.set_verbosity_error()


class Plain:
    """No LoRA at all."""

    name = "diffusers, no LoRA"
    own_memory = False

    def __init__(self, topology: Topology, layout: torch.memory_format, first: Lora | None = None):
        self.pipe = topology.theirs(own_memory=self.own_memory, layout=layout)
        self._device = torch.device(topology.device)
        if first is not None:
            self._begin(first)

    def _begin(self, first: Lora) -> None:
        """Whatever is done once, before the first job."""

    def ready(self, lora: Lora) -> None:
        """What may be done ahead of a job's turn; not timed."""

    def _put_on(self, lora: Lora) -> None:
        """Give the job its LoRA."""

    def _take_off(self) -> None:
        """Make room for the next."""

    def paint(self, job: Job, lora: Lora | None = None, output_type: str = "pt") -> Tensor:
        """Pictures ``[N, 3, H, W]``, or with "latent" the last latents."""
        if lora is not None:
            self._put_on(lora)
        with torch.no_grad():
            images = self.pipe(**job.arguments(), output_type=output_type).images
        if lora is not None:
            self._take_off()
        return images

    def latents(self, job: Job, lora: Lora | None = None) -> Tensor:
        if lora is not None:
            self.ready(lora)
        return self.paint(job, lora, "latent")

    def seconds(self, job: Job, lora: Lora | None = None) -> float:
        """From the call to the picture."""
        self._wait()
        begin = time.perf_counter()
        self.paint(job, lora)
        self._wait()
        return time.perf_counter() - begin

    def swap_seconds(self, lora: Lora) -> float:
        """Of giving and taking alone, without a job."""
        self.ready(lora)
        self._wait()
        begin = time.perf_counter()
        self._put_on(lora)
        self._take_off()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def batch_seconds(self, jobs: Sequence[Job]) -> float:
        """Of one call for jobs that differ in text, picture and seed only."""
        self._wait()
        begin = time.perf_counter()
        self.batch(jobs)
        self._wait()
        return time.perf_counter() - begin

    @torch.no_grad()
    def batch(self, jobs: Sequence[Job], output_type: str = "pt") -> Tensor:
        """That call's pictures or latents, a row each."""
        each = [job.arguments() for job in jobs]
        lists = {name: [one for given in each for one in given[name]] for name in ("image", "mask_image", "generator")}
        texts = {name: [given[name] for given in each] for name in ("prompt", "negative_prompt")}
        return self.pipe(**{**each[0], **lists, **texts}, output_type=output_type).images


class Hotswap(Plain):
    name = "diffusers, hotswap"

    def _begin(self, first: Lora) -> None:
        self.pipe.enable_lora_hotswap(target_rank=first.rank)
        self.pipe.load_lora_weights(dict(first.tensors), adapter_name="swapped")

    def _put_on(self, lora: Lora) -> None:
        self.pipe.load_lora_weights(dict(lora.tensors), adapter_name="swapped", hotswap=True)


class Resident(Plain):
    name = "diffusers, set_adapters"

    def _begin(self, first: Lora) -> None:
        self._loaded: deque[str] = deque()
        self.ready(first)

    def ready(self, lora: Lora) -> None:
        if _adapter(lora) in self._loaded:
            return
        while len(self._loaded) >= _RESIDENT:
            self.pipe.delete_adapters(self._loaded.popleft())
        self.pipe.load_lora_weights(dict(lora.tensors), adapter_name=_adapter(lora))
        self._loaded.append(_adapter(lora))
        self.pipe.set_adapters(self._loaded[0])

    def _put_on(self, lora: Lora) -> None:
        self.pipe.set_adapters(_adapter(lora))


class Loaded(Plain):
    name = "diffusers, load and unload"

    def _put_on(self, lora: Lora) -> None:
        self.pipe.load_lora_weights(dict(lora.tensors), adapter_name="one")

    def _take_off(self) -> None:
        self.pipe.unload_lora_weights()


class Fused(Loaded):
    name = "diffusers, load and fuse"
    own_memory = True  # it writes into its weights, and does not get all of them back

    def _put_on(self, lora: Lora) -> None:
        super()._put_on(lora)
        self.pipe.fuse_lora()

    def _take_off(self) -> None:
        self.pipe.unfuse_lora()
        super()._take_off()


def _adapter(lora: Lora) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in lora.name)


def better_layout(topology: Topology, options: Options) -> tuple[torch.memory_format, str]:
    """The memory layout that diffusers' UNet is quicker in here, and a note of by how much."""
    contenders, latent = {}, options.side // 8
    for layout in (torch.contiguous_format, torch.channels_last):
        unet = topology.their_unet(own_memory=False, layout=layout)
        forward = forward_of(unet, (latent, latent), 77, 2)
        contenders[str(layout).removeprefix("torch.")] = on_device(forward, options.device)
    found = interleaved(contenders, max(1, min(3, options.repeat)), what="diffusers' layout")
    totals = {name: sorted(values)[len(values) // 2] for name, values in found.items()}
    best = min(totals, key=totals.__getitem__)
    note = ", ".join(f"{name} {1000 * taken:,.1f} ms" for name, taken in totals.items())
    return getattr(torch, best), f"diffusers runs in {best}, its quicker layout here (a forward: {note})"
