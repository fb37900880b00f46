"""The training of the demo's model, with networks so small that a whole run takes seconds: it learns, it can be
stopped anywhere and goes on bit for bit, and what it writes is read here and by diffusers alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from worker.demo import ship, shipped
from worker.demo.train import main as train_main
from worker.demo.training.brand_looks import LookStage
from worker.demo.training.clock import Clock
from worker.demo.training.journal import read_journal
from worker.demo.training.lineage import BEGINNING, Lineage
from worker.demo.training.loop import Stopped
from worker.demo.training.run import Run
from worker.demo.training.settings import (
    CPU,
    DenoiserSettings,
    LookSettings,
    PoolSettings,
    Schedule,
    Settings,
    VaeSettings,
)
from worker.engine import StableDiffusionInpaintPipeline
from worker.engine.checkpoints import load_component
from worker.engine.errors import InvalidParameter

TINY = Settings(
    vae=VaeSettings(Schedule(steps=60, batch=4, learning_rate=2e-3, warmup=5, average=0.8), (8, 8, 8, 16), crop=32),
    pool=PoolSettings(((32, 32, 24), (48, 32, 6))),
    denoiser=DenoiserSettings(
        Schedule(steps=60, batch=8, learning_rate=2e-3, warmup=5, average=0.8),
        widths=(16, 32),
        groups=8,
        text_width=16,
        text_layers=1,
    ),
    looks=LookSettings(
        Schedule(steps=20, batch=4, learning_rate=1e-2, warmup=5, average=0.8),
        PoolSettings(((32, 32, 8),)),
        names=("polka", "stripes"),
    ),
    side=32,
    log_every=5,
)
DEVICE = torch.device("cpu")


class StopsAfter(Clock):
    """Asks for an end when it has been looked at so many times."""

    def __init__(self, looks: int):
        self._looks = looks
        super().__init__(None)

    @property
    def stopping(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    @stopping.setter
    def stopping(self, value: bool) -> None:
        """Set by the base, to False."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("run")
    Run(TINY, out, DEVICE).whole()
    return out


def curve(out: Path, stage: str) -> list[float]:
    return [line["loss"] for line in read_journal(out / "log.jsonl") if line["stage"] == stage]


def written(out: Path) -> dict[str, bytes]:
    folders = (out / "checkpoint", out / "loras")
    return {str(p.relative_to(out)): p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


def test_losses_fall(run: Path) -> None:
    for stage in ("autoencoder", "denoiser"):
        losses = curve(run, stage)
        assert mean(losses[-4:]) < 0.75 * losses[0], (stage, losses)


def test_a_look_is_learnt_on_the_very_rows_and_noise_that_it_began_with(run: Path) -> None:
    unet, text_encoder = (load_component(run / "checkpoint", part, torch.float32) for part in ("unet", "text_encoder"))
    pools = Run(TINY, run, DEVICE)._pools(None, TINY.looks.pool, "looks", "polka")  # as they lie there
    stage = LookStage("polka", TINY, unet, text_encoder, pools, DEVICE)
    with torch.no_grad():
        before = mean(float(stage.loss(step)) for step in range(8))
        saved = torch.load(run / "state" / "look-polka.pt", weights_only=True)
        stage.network.load_state_dict(saved["network"])
        after = mean(float(stage.loss(step)) for step in range(8))
    assert after < 0.99 * before


def test_a_run_that_is_stopped_again_and_again_ends_bit_for_bit_as_one_that_is_not(run: Path, tmp_path: Path) -> None:
    stops = 0
    while True:
        try:
            Run(TINY, tmp_path, DEVICE, StopsAfter(40)).whole()
            break
        except Stopped:
            stops += 1
    assert stops >= 3
    assert written(tmp_path) == written(run)
    ours, theirs = (read_journal(out / "log.jsonl") for out in (tmp_path, run))
    assert [{**line, "seconds": 0} for line in ours] == [{**line, "seconds": 0} for line in theirs]


def test_equal_seeds_give_equal_curves_whoever_makes_the_scenes_and_other_seeds_others(
    run: Path, tmp_path: Path
) -> None:
    for name, changes in (("again", {"workers": 1}), ("other", {"seed": 1})):
        with pytest.raises(Stopped):
            Run(replace(TINY, **changes), tmp_path / name, DEVICE, StopsAfter(10)).whole()
    again, other = (curve(tmp_path / name, "autoencoder") for name in ("again", "other"))
    assert len(again) == len(other) == 2
    assert again == curve(run, "autoencoder")[:2]
    assert all(abs(a - b) > 1e-6 for a, b in zip(again, other, strict=True))


def test_a_folder_with_a_run_of_other_settings_is_refused(run: Path) -> None:
    with pytest.raises(InvalidParameter, match="side"):
        Run(replace(TINY, side=48), run, DEVICE)
    Run(replace(TINY, minutes=5, workers=1), run, DEVICE)  # these two may differ
    assert train_main([str(run), "--preset", "cpu"]) == 2


def test_a_stage_ends_with_its_share_of_the_time_and_says_where_it_was(tmp_path: Path) -> None:
    settings, now = replace(TINY, minutes=1.0), [0.0]

    class Ticking(Clock):
        """Every look at the time takes a second."""

        def __init__(self):
            super().__init__(1.0, now=self._tick)

        def _tick(self) -> float:
            now[0] += 1.0
            return now[0]

    Run(settings, tmp_path, DEVICE, Ticking()).autoencoder()
    lines = [line for line in read_journal(tmp_path / "log.jsonl") if line["stage"] == "autoencoder"]
    assert len(lines) < TINY.vae.schedule.steps // TINY.log_every
    assert lines[-1]["rate"] < 0.3 * TINY.vae.schedule.learning_rate  # it has fallen with the time
    assert torch.load(tmp_path / "state" / "autoencoder.pt", weights_only=True)["done"]


# -- what is written ----------------------------------------------------------------------------------------------


def picture(pipe, prompt: str = "red gradient studio backdrop", side: int = 32) -> np.ndarray:
    """[side, side, 3] in 0…1, edited everywhere but in its middle."""
    mask = Image.new("L", (side, side), 255)
    mask.paste(0, (side // 4, side // 4, 3 * side // 4, 3 * side // 4))
    image = Image.merge("RGB", [Image.linear_gradient("L").resize((side, side))] * 3)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": side, "width": side, "output_type": "np"}
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt=prompt, image=image, mask_image=mask, generator=generator, **options).images[0]


def both(checkpoint: Path) -> tuple[StableDiffusionInpaintPipeline, diffusers.StableDiffusionInpaintPipeline]:
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        checkpoint, safety_checker=None, local_files_only=True
    )
    return StableDiffusionInpaintPipeline.from_pretrained(checkpoint), theirs


def test_diffusers_reads_checkpoint_and_loras_and_paints_the_same(run: Path) -> None:
    pipes = both(run / "checkpoint")
    plain, theirs = (picture(pipe) for pipe in pipes)
    assert np.abs(plain - theirs).max() < 1 / 255
    for name in TINY.looks.names:
        for pipe in pipes:
            pipe.load_lora_weights(str(run / "loras" / f"{name}.safetensors"), adapter_name=name)
        ours, theirs = (picture(pipe) for pipe in pipes)
        assert np.abs(ours - theirs).max() < 1 / 255
        assert np.abs(ours - plain).mean() > 1e-3
        for pipe in pipes:
            pipe.unload_lora_weights()
    assert np.array_equal(picture(pipes[0]), plain)


def test_the_tokenizers_folder_is_one_that_transformers_reads(run: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(run / "checkpoint" / "tokenizer")
    assert tokenizer.model_max_length == 77
    assert len(tokenizer("red gradient studio backdrop").input_ids) == 6


def test_only_a_finished_run_is_shipped(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    target = tmp_path / "model"
    for name, path in (("CHECKPOINT", target), ("LORAS", target / "loras"), ("JOURNAL", target / "training.json")):
        monkeypatch.setattr(shipped, name, path)
    assert ship.main([str(tmp_path / "nothing")]) == 2 and "finish" in capsys.readouterr().err
    monkeypatch.setattr(ship, "LARGEST_LORA", 100)
    assert ship.main([str(run)]) == 2 and "ranks" in capsys.readouterr().err
    assert not target.exists()
    monkeypatch.undo()
    for name, path in (("CHECKPOINT", target), ("LORAS", target / "loras"), ("JOURNAL", target / "training.json")):
        monkeypatch.setattr(shipped, name, path)
    assert ship.main([str(run)]) == 0
    shipped.copy_model(tmp_path / "copy")
    assert written(tmp_path / "copy") == written(run)
    lineage = Lineage.load(target / "training.json")
    assert lineage.settings == json.loads((run / "settings.json").read_text())
    assert list(lineage.curve("denoiser").values()) == curve(run, "denoiser")
    with pytest.raises(FileExistsError):
        shipped.copy_model(tmp_path / "copy")


def test_a_long_journal_is_thinned_to_its_beginning_some_of_the_rest_and_its_end(tmp_path: Path) -> None:
    CPU.save(tmp_path / "settings.json")
    lines = [{"stage": "denoiser", "step": step, "loss": 1 / step} for step in range(10, 20_010, 10)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [line["step"] for line in Lineage.of_run(tmp_path).lines]
    assert steps[:21] == [*range(10, BEGINNING + 10, 10), steps[20]] and steps[20] > BEGINNING
    assert steps[-1] == 20_000 and 55 <= len(steps) <= 70
