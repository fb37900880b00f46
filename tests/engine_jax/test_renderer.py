"""A worker's jobs with the JAX back end: the torch back end's pictures, and what is refused."""

import jax
import numpy as np
import pytest

from farm.config import load_settings
from farm.errors import FeatureUnavailable, Misconfigured, Preempted
from tests.engine import tiny_checkpoints
from tests.engine.renderer_bench import IMAGE, after, apart, lora_asset, make_renderer, make_request
from worker.engine.errors import FeatureUnavailable as EngineFeatureUnavailable
from worker.jax_renderer import JaxRenderer


def make_jax_renderer(**settings) -> JaxRenderer:
    folder = tiny_checkpoints.folder("inpaint")
    return JaxRenderer(load_settings(**{"model_path": folder, "size_buckets": ["64x64"], **settings}))


@pytest.fixture(scope="module")
def renderer():
    return make_jax_renderer()


@pytest.mark.parametrize(
    "asked, option",
    [
        ({"clip_skip": 1}, "clip_skip"),
        ({"eta": 0.5, "scheduler": "ddim"}, "eta"),
        ({"image": IMAGE.resize((128, 64))}, "width"),
        ({"scheduler": "euler_ancestral"}, "scheduler"),
        ({"scheduler": "dpmpp_2m_sde"}, "scheduler"),
        ({"embeddings": (object(),)}, "embeddings"),
        ({"ip_adapter": object()}, "ip_adapter"),
    ],
)
def test_what_it_does_not_do_is_refused_by_the_options_name(renderer, asked, option):
    with pytest.raises((FeatureUnavailable, EngineFeatureUnavailable), match=f"^{option}: ") as caught:
        renderer.render(make_request(**asked))
    assert caught.value.code == "FeatureUnavailable"
    assert not renderer.rendering


def test_weights_that_it_has_no_use_for_are_refused_when_they_are_read(renderer):
    for read, option in ((renderer.read_embedding, "embeddings"), (renderer.read_ip_adapter, "ip_adapter")):
        with pytest.raises(FeatureUnavailable, match=option):
            read(b"")


def test_a_job_that_is_to_give_way_begins_nothing(renderer):
    with pytest.raises(Preempted):
        renderer.render(make_request(preempted=lambda: True))


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"device": "cuda"}, "FARM_DEVICE"),
        ({"max_batch_rows": 4}, "FARM_MAX_BATCH_ROWS"),
        ({"compile": "default"}, "FARM_COMPILE"),
        ({"vram_budget": 10**9}, "FARM_VRAM_BUDGET"),
        ({"dtype": "int8"}, "FARM_DTYPE"),
        ({"model_path": None}, "FARM_MODEL_PATH"),
    ],
)
def test_settings_that_mean_nothing_here_are_refused_by_name(settings, named):
    with pytest.raises(Misconfigured, match=named):
        make_jax_renderer(**settings)


@pytest.mark.full
def test_its_pictures_are_the_torch_back_ends_and_nothing_is_compiled_after_the_warm_up(renderer):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    renderer.warm_up()
    assert compiled
    other = make_renderer(tiny_checkpoints.folder("inpaint"))
    plain = None
    try:
        for asked in (
            {},
            {"guidance_scale": 1.0, "scheduler": "pndm", "num_inference_steps": 6},
            {"strength": 0.5, "num_inference_steps": 8, "scheduler": "dpmpp_2m"},
            {"num_images_per_prompt": 2, "scheduler": "lms", "negative_prompt": "a dog"},
            {"loras": 1},
        ):
            lora = {"loras": (lora_asset(renderer),)} if asked.pop("loras", 0) else {}
            steps, before = [], len(compiled)
            mine = renderer.render(make_request(**asked, **lora, on_step=lambda steps=steps: steps.append(1)))
            theirs = other.render(make_request(**asked, **lora))
            assert apart(mine, theirs) <= 2, asked
            assert len(compiled) == before, asked
            assert len(steps) >= 3 and {"vae_encode", "denoise", "vae_decode"} <= set(mine.timings)
            plain = plain or mine
        assert mine.lora_mode == "merged" and mine.lora_swap_seconds > 0
        assert apart(mine, plain) > 2
        assert apart(renderer.render(make_request()), plain) == 0  # the LoRA is out again, to the last bit
        assert np.isfinite(renderer.estimate_seconds(make_request()))
        with pytest.raises(Preempted):
            renderer.render(make_request(preempted=after(1)))
        assert not renderer.rendering
    finally:
        other.close()
