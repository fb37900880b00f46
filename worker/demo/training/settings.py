"""Every number of a training run, and three sets of them: to try the code, for two CPU cores, for one large GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from worker.demo.scenes.looks import LOOKS
from worker.engine.errors import InvalidParameter


@dataclass(frozen=True)
class Schedule:
    """One stage's optimisation (AdamW, Loshchilov and Hutter 2019, arXiv:1711.05101).

    `learning_rate` rises over `warmup` steps and falls along a cosine to a twentieth. `average`: decay a step of the
    moving average of the weights that is what gets saved.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    average: float = 0.999


@dataclass(frozen=True)
class VaeSettings:
    """`crop`: side in pixels of what a step sees of each scene. `kl`: weight of the divergence from N(0, 1)."""

    schedule: Schedule
    widths: tuple[int, ...] = (24, 48, 64, 96)
    groups: int = 2
    crop: int = 128
    kl: float = 3e-4


@dataclass(frozen=True)
class PoolSettings:
    """Scenes that are encoded once and then drawn from: (height, width, how many) in pixels."""

    shapes: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class DenoiserSettings:
    """`drop_caption`: how often a caption is left out, for classifier-free guidance (Ho and Salimans 2022,
    arXiv:2207.12598). `snr_gamma`: Hang et al. 2023, arXiv:2303.09556. `noise_offset`: deviation of what is added to
    the noise of a whole channel, without which the last noise level gives away the picture's mean. `kept_weight`: of
    the loss where nothing is to be repainted."""

    schedule: Schedule
    widths: tuple[int, ...] = (64, 128, 192)
    groups: int = 16
    text_width: int = 128
    text_layers: int = 2
    drop_caption: float = 0.1
    snr_gamma: float = 5.0
    noise_offset: float = 0.1
    kept_weight: float = 0.25


@dataclass(frozen=True)
class LookSettings:
    """LoRAs: `attention_rank` for the attention's four projections, `convolution_rank` for the residual blocks'."""

    schedule: Schedule
    pool: PoolSettings
    names: tuple[str, ...] = tuple(LOOKS)
    attention_rank: int = 4
    convolution_rank: int = 2


@dataclass(frozen=True)
class Settings:
    """`minutes` None: every stage takes its steps. Otherwise a stage also ends, its rate having fallen with the time,
    when its share of the minutes is over: `marks` are the ends of autoencoder, denoiser and looks. `workers`: processes
    that make scenes, 0 for none but the trainer's own."""

    vae: VaeSettings
    pool: PoolSettings
    denoiser: DenoiserSettings
    looks: LookSettings
    seed: int = 0
    minutes: float | None = None
    marks: tuple[float, float, float] = (0.25, 0.8, 0.98)
    workers: int = 0
    side: int = 128  # of the scenes that the autoencoder sees, and the pipeline's default size
    log_every: int = 10
    save_every: float = 120.0  # seconds

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")

    def require_same(self, path: Path) -> None:
        """Raise InvalidParameter if a run with other settings was begun there; time and workers may differ."""
        if not path.is_file():
            return
        free = {"minutes": None, "workers": 0, "save_every": 0.0}
        begun = {**json.loads(path.read_text("utf-8")), **free}
        own = {**json.loads(json.dumps(asdict(self))), **free}
        if other := [name for name in own if begun.get(name) != own[name]]:
            raise InvalidParameter(
                "out", f"holds a run with other settings ({', '.join(other)}); choose another folder"
            )


SMOKE = Settings(
    vae=VaeSettings(Schedule(steps=60, batch=8, learning_rate=3e-3, warmup=10, average=0.9), (8, 16, 16, 16), crop=32),
    pool=PoolSettings(((32, 32, 96),)),
    denoiser=DenoiserSettings(
        Schedule(steps=200, batch=16, learning_rate=2e-3, warmup=10, average=0.97),
        widths=(16, 32),
        groups=8,
        text_width=32,
        text_layers=1,
    ),
    looks=LookSettings(
        Schedule(steps=20, batch=8, learning_rate=3e-3, warmup=5, average=0.9), PoolSettings(((32, 32, 32),))
    ),
    side=32,
)

CPU = Settings(
    vae=VaeSettings(Schedule(steps=12_000, batch=8, learning_rate=6e-4, average=0.998), (16, 32, 64, 96), crop=64),
    pool=PoolSettings(((128, 128, 13_000), (192, 128, 1_200), (128, 192, 1_200), (192, 192, 800))),
    denoiser=DenoiserSettings(Schedule(steps=20_000, batch=16, learning_rate=5e-4, average=0.999), (48, 96, 160)),
    looks=LookSettings(
        Schedule(steps=2_400, batch=8, learning_rate=1e-3, warmup=20, average=0.99),
        PoolSettings(((128, 128, 700),)),
        attention_rank=2,
        convolution_rank=3,
    ),
    minutes=110,
    marks=(0.25, 0.8, 0.99),
    workers=1,
)

GPU = Settings(
    vae=VaeSettings(Schedule(steps=20_000, batch=32, learning_rate=6e-4, average=0.998)),
    pool=PoolSettings(((128, 128, 100_000), (192, 192, 12_000), (256, 192, 4_000), (192, 256, 4_000))),
    denoiser=DenoiserSettings(Schedule(steps=60_000, batch=384, learning_rate=8e-4, warmup=300, average=0.9995)),
    looks=LookSettings(
        Schedule(steps=2_000, batch=128, learning_rate=2e-3, warmup=30, average=0.99),
        PoolSettings(((128, 128, 3_000), (192, 192, 600))),
    ),
    minutes=7.5,
    marks=(0.24, 0.78, 0.97),
    workers=15,
)

PRESETS: Final[Mapping[str, Settings]] = {"smoke": SMOKE, "cpu": CPU, "gpu": GPU}


def with_changes(settings: Settings, **changes: object) -> Settings:
    """The settings with those of `changes` that are not None."""
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})
