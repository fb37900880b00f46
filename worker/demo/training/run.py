"""A whole run, from nothing to a checkpoint and its LoRAs; what an earlier run of it did is not done again.

out/settings.json  log.jsonl  state/  pools/      to go on from
out/checkpoint/  loras/<look>.safetensors          what is shipped
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from worker.demo.layout import write_checkpoint
from worker.demo.scenes import make_scene
from worker.demo.training.autoencoder import AutoencoderStage, with_scaling_factor
from worker.demo.training.brand_looks import LookStage
from worker.demo.training.clock import Clock
from worker.demo.training.data import Collate, as_signal, mixed_scene, series, tokens_of
from worker.demo.training.denoiser import DenoiserStage
from worker.demo.training.journal import Journal
from worker.demo.training.loop import Stage, train
from worker.demo.training.pools import Pool, pool
from worker.demo.training.settings import PoolSettings, Schedule, Settings
from worker.demo.vocabulary import write_tokenizer
from worker.engine.checkpoints import load_component
from worker.engine.text import load_tokenizer
from worker.engine.vae import AutoencoderKL


class Run:
    """One folder's run. `clock` and `journal` may be given by a test."""

    def __init__(self, settings: Settings, out: Path, device: torch.device, clock: Clock | None = None):
        out.mkdir(parents=True, exist_ok=True)
        settings.require_same(out / "settings.json")
        settings.save(out / "settings.json")
        self.settings, self.out, self.device = settings, out, device
        self.clock = Clock(settings.minutes) if clock is None else clock
        self.journal = Journal(out / "log.jsonl", self.clock)
        self.checkpoint, self.loras = out / "checkpoint", out / "loras"
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True

    def whole(self) -> None:
        """Every stage. Raises loop.Stopped, everything saved, when a signal asked for an end."""
        with _stopped_by_signals(self.clock):
            vae = self.autoencoder()
            self.denoiser(vae)
            self.looks(vae)

    def autoencoder(self) -> AutoencoderKL:
        stage = AutoencoderStage(self.settings, self._tokenizer(), self.device)
        self._train(stage, self.settings.vae.schedule, self.settings.marks[0])
        side = self.settings.side
        scenes = [mixed_scene(series(self.settings.seed, "denoiser"), index, (side, side)) for index in range(96)]
        pictures = Collate(self._tokenizer())([tuple(scene) for scene in scenes]).pictures
        return with_scaling_factor(stage.network, as_signal(pictures).to(self.device))

    def denoiser(self, vae: AutoencoderKL) -> None:
        """Train UNet and text encoder, and write the checkpoint."""
        settings, folder = self.settings, self._tokenizer()
        self.clock.open_stage(settings.marks[1])
        tokenizer = load_tokenizer(folder)
        pools = self._pools(vae, settings.pool, "denoiser", None)
        stage = DenoiserStage(settings, len(tokenizer), pools, tokens_of(tokenizer, [""])[0], self.device)
        self._train(stage, settings.denoiser.schedule, settings.marks[1])
        write_checkpoint(
            self.checkpoint,
            unet=stage.unet,
            vae=vae,
            text_encoder=stage.text_encoder,
            text_settings=stage.text_settings,
        )

    def looks(self, vae: AutoencoderKL) -> None:
        """A LoRA for each look, for the weights as they were written."""
        settings = self.settings
        unet, text_encoder = (
            load_component(self.checkpoint, part, torch.float32).to(self.device) for part in ("unet", "text_encoder")
        )
        (_, begin, end), names = settings.marks, settings.looks.names
        for place, name in enumerate(names, start=1):
            mark = begin + (end - begin) * place / len(names)
            self.clock.open_stage(mark)
            pools = self._pools(vae, settings.looks.pool, "looks", name)
            stage = LookStage(name, settings, unet, text_encoder, pools, self.device)
            self._train(stage, settings.looks.schedule, mark)
            stage.network.save(self.loras / f"{name}.safetensors")

    def _train(self, stage: Stage, schedule: Schedule, mark: float) -> None:
        self.clock.open_stage(mark)
        options = {"log_every": self.settings.log_every, "save_every": self.settings.save_every}
        train(stage, schedule, self.out / "state" / f"{stage.name}.pt", self.clock, self.journal, **options)

    def _pools(self, vae: AutoencoderKL, wanted: PoolSettings, purpose: str, look: str | None) -> list[Pool]:
        seed = series(self.settings.seed, purpose)
        return [
            pool(
                self.out / "pools" / f"{look or purpose}-{height}x{width}.safetensors",
                partial(make_scene, seed, shape=(height, width), look=look),
                count,
                vae,
                self._tokenizer(),
                seed=seed,
                workers=self.settings.workers,
                journal=self.journal,
            )
            for height, width, count in wanted.shapes
        ]

    def _tokenizer(self) -> Path:
        folder = self.checkpoint / "tokenizer"
        if not folder.is_dir():
            write_tokenizer(folder)
        return folder


@contextmanager
def _stopped_by_signals(clock: Clock) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run within a few steps, saved."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warn of every process that makes scenes
    before = {number: signal.signal(number, clock.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
