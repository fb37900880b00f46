"""The loop that every stage runs in: it steps, averages, logs, saves, resumes, and stops in time."""

from __future__ import annotations

import hashlib
import math
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worker.demo.training.clock import Clock
from worker.demo.training.journal import Journal
from worker.demo.training.settings import Schedule


class Stopped(Exception):
    """Not an error: the run was asked to stop, has saved, and can be resumed."""


class Stage(Protocol):
    """`network` holds what is trained; `loss` is one step's, drawn from (seed, stage, step) alone."""

    name: str
    network: nn.Module

    def loss(self, step: int) -> Tensor: ...


def step_generator(seed: int, stage: str, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one step."""
    digest = hashlib.blake2b(f"{seed}/{stage}/{step}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest))


class Average:
    """A moving average of trained weights (Polyak and Juditsky 1992), quick at first: the decay of step n is at most
    (1 + n) / (10 + n)."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.live = [p for p in network.parameters() if p.requires_grad]
        self.kept = [p.detach().clone() for p in self.live]

    def update(self, step: int) -> None:
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.live], share)

    def install(self) -> None:
        """Put the averages in the place of the weights."""
        with torch.no_grad():
            for live, kept in zip(self.live, self.kept, strict=True):
                live.copy_(kept)


def learning_rate(schedule: Schedule, step: int, progress: float) -> float:
    """`progress` 0…1 is how much of the stage is over."""
    fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return schedule.learning_rate * min(1.0, (step + 1) / schedule.warmup) * fall


def train(
    stage: Stage, schedule: Schedule, state: Path, clock: Clock, journal: Journal, *, log_every: int, save_every: float
) -> None:
    """Train `stage.network`, from `state` on where that file exists, and leave the averaged weights in it.

    Ends after the schedule's steps, or when the clock says that the stage's time is over. Raises Stopped, having
    saved, within `log_every` steps of the clock's being told to stop.
    """
    parameters = [p for p in stage.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=schedule.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    average = Average(stage.network, schedule.average)
    step, done = _load(state, stage, optimizer, average, clock) if state.is_file() else (0, False)
    journal.begin(stage.name, step, schedule.steps, schedule.batch)
    save = partial(_save, state, stage, optimizer, average, clock)
    sums = torch.zeros(2, device=parameters[0].device)
    while step < schedule.steps and not clock.over and not done:
        # only where a line of the journal is whole, so that the journal, too, goes on as if nothing had been
        if clock.stopping and step % log_every == 0:
            save(step)
            raise Stopped
        progress = max(step / schedule.steps, clock.progress)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step, progress)
        loss = stage.loss(step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(step)
        sums += torch.stack([loss.detach(), norm.detach()])
        step += 1
        if step % log_every == 0:
            loss_mean, norm_mean = (sums / log_every).tolist()  # the one point where the host waits for the device
            sums.zero_()
            journal.write(step, loss=loss_mean, gradient=norm_mean, rate=optimizer.param_groups[0]["lr"])
            if clock.since_saved > save_every:
                save(step)
    save(step, done=True)
    journal.end(step)
    average.install()


def _save(
    path: Path, stage: Stage, optimizer: Any, average: Average, clock: Clock, step: int, done: bool = False
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    content = {
        "step": step,
        "done": done,
        "network": stage.network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.kept,
        "clock": clock.state(),
    }
    torch.save(content, unfinished)
    unfinished.replace(path)
    clock.saved()


def _load(path: Path, stage: Stage, optimizer: Any, average: Average, clock: Clock) -> tuple[int, bool]:
    """The step to go on from, and whether the stage is over."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    stage.network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    for kept, saved in zip(average.kept, content["average"], strict=True):
        kept.copy_(saved)
    clock.resume(content["clock"])
    return content["step"], content["done"]
