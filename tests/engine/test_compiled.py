"""Compiled steps: the same pictures, and no swap that compiles anything anew."""

import pytest
import torch
from torch._dynamo.utils import counters

from tests.engine import tiny_checkpoints
from tests.engine.renderer_bench import make_renderer
from tests.engine.test_engine import WAIT, submission
from worker.engine import InpaintEngine
from worker.engine.compiled import CompiledUNet
from worker.engine.errors import FeatureUnavailable, InvalidParameter
from worker.engine.lora import LoraMerger, read_lora

ROWS = (2, 4)


@pytest.fixture(scope="module")
def prepared():
    """Traced and replayed as ever, but without the minute that a compiler takes."""
    pipe = tiny_checkpoints.load_ours("inpaint")
    compiled = CompiledUNet(pipe.unet, backend="aot_eager")
    for rows in ROWS:
        compiled.prepare((8, 8), 77, rows)
    return pipe, compiled


def batch(unet, rows, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sample, text = (torch.randn(rows, *shape, generator=draw).to(unet.device) for shape in ((9, 8, 8), (77, 32)))
    return sample, unet.time_states(torch.full((rows,), 100.0 + seed)), unet.text_keys_values(text)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@torch.no_grad()
def test_a_swap_is_in_the_next_step_and_compiles_nothing(prepared):
    pipe, compiled = prepared
    unet, merger = pipe.unet, LoraMerger(pipe.unet, pipe.text_encoder)
    loras = [read_lora(tiny_checkpoints.lora("inpaint", seed=seed), merger.table) for seed in range(3)]
    before, seen = graphs(), []
    for swap in range(12):
        merger.set_adapters([(loras[swap % 3], 1.0 + swap, None)])
        given = batch(unet, ROWS[swap % 2])
        found = compiled(*given)
        torch.testing.assert_close(found, unet(*given), rtol=1e-5, atol=1e-5)
        seen.append(found.flatten()[:8])
    merger.restore()
    assert graphs() == before, "the swaps made graphs"
    assert len({tuple(one.tolist()) for one in seen}) == 12


@torch.no_grad()
def test_what_was_not_prepared_is_made_by_the_unet_itself(prepared):
    unet, compiled = prepared[0].unet, prepared[1]
    before, calls = graphs(), []
    hook = unet.register_forward_hook(lambda *_: calls.append(1))
    given = batch(unet, 3)
    assert torch.equal(compiled(*given), unet(*given)) and len(calls) == 2
    assert len(compiled(torch.zeros(2, 9, 8, 8), 5.0, torch.zeros(2, 77, 32))) == 2 and len(calls) == 3
    compiled(*batch(unet, 2))
    hook.remove()
    assert len(calls) == 3 and graphs() == before


def test_the_twin_has_no_weights_of_its_own(prepared):
    unet, compiled = prepared[0].unet, prepared[1]
    assert not list(compiled.parameters())
    (graph,) = compiled._graph
    addresses = {parameter.data_ptr() for parameter in unet.parameters()}
    assert {parameter.data_ptr() for parameter in graph.parameters()} == addresses


def test_jobs_of_many_loras_through_a_compiled_engine(monkeypatch):
    """They are what they are without, and their forwards are counted once."""
    plain, made = (InpaintEngine(tiny_checkpoints.load_ours("inpaint")) for _ in range(2))
    original = CompiledUNet.__init__
    monkeypatch.setattr(CompiledUNet, "__init__", lambda self, unet, mode: original(self, unet, mode, "aot_eager"))
    forwards = []
    monkeypatch.setattr(made._watch, "_computed", forwards.append)
    made.compile("default", 64, 64, rows=[2])
    forwards.clear()
    before = graphs()
    for seed in range(3):
        lora = read_lora(tiny_checkpoints.lora("inpaint", seed=seed), made.merger.table)
        expected, found = (
            one.submit(submission(loras=[(lora, 1.0)], num_inference_steps=3)).result(WAIT) for one in (plain, made)
        )
        torch.testing.assert_close(found.request.latents, expected.request.latents, rtol=1e-4, atol=1e-4)
        assert found.lora_mode == "merged"
    assert graphs() == before
    steps, texts, encoded, decoded = 3, 2, 1, 1
    assert len(forwards) == 3 * (steps + texts + decoded) + encoded, "the picture is known after the first"
    for engine in (plain, made):
        engine.close()


def test_a_machine_that_cannot_compile_says_so():
    unet = tiny_checkpoints.ours("inpaint").unet

    def none(*_):
        raise RuntimeError("no working C++ compiler")

    compiled = CompiledUNet(unet, backend=none)
    with pytest.raises(FeatureUnavailable, match=r"C\+\+ compiler \(g\+\+\)"):
        compiled.prepare((8, 8), 77, 2)
    with pytest.raises(InvalidParameter, match="default, reduce-overhead"):
        CompiledUNet(unet, "fast")


def test_a_worker_compiles_every_size_before_it_is_ready(tiny_checkpoint, monkeypatch):
    made = []
    monkeypatch.setattr(CompiledUNet, "prepare", lambda self, *given: made.append(given))
    sizes = ["64x64", "64x96"]
    for mode, grids in (("off", []), ("default", [(8, 8), (12, 8)])):
        renderer = make_renderer(tiny_checkpoint(), size_buckets=sizes, compile=mode, max_batch_rows=4)
        renderer.warm_up()
        renderer.close()
        assert made == [(grid, 77, rows) for grid in grids for rows in (2, 4)]


@pytest.mark.full
@torch.no_grad()
def test_the_compiler_makes_the_same_step():
    unet = tiny_checkpoints.load_ours("inpaint").unet
    compiled = CompiledUNet(unet)
    compiled.prepare((8, 8), 77, 2)
    given = batch(unet, 2)
    torch.testing.assert_close(compiled(*given), unet(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@torch.no_grad()
def test_a_cuda_graph_takes_the_lora_that_is_in_the_weights_now():
    pipe = tiny_checkpoints.load_ours("inpaint").to("cuda")
    unet = pipe.unet
    compiled = CompiledUNet(unet, "reduce-overhead")
    compiled.prepare((8, 8), 77, 2)
    merger = LoraMerger(unet, pipe.text_encoder)
    given, before = batch(unet, 2), graphs()
    for seed in range(3):
        lora = read_lora(tiny_checkpoints.lora("inpaint", seed=seed), merger.table).to("cuda")
        merger.set_adapters([(lora, 1.0, None)])
        torch.testing.assert_close(compiled(*given), unet(*given), rtol=1e-3, atol=1e-3)
    assert graphs() == before
