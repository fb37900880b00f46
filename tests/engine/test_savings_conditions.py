"""Time and text, prepared once: the UNet's output is that of the plain call, whatever the architecture and LoRAs."""

import pytest
import torch

from tests.engine import lora_samples as samples
from tests.engine.comparison import relative_error
from tests.engine.test_lora_mixed import Bench, worst_row
from tests.engine.test_unet import CONFIGURATIONS, inputs, pair
from worker.engine.conditions import KeysValues, TimeStates
from worker.engine.errors import InvalidParameter
from worker.engine.lora import Adapter

RUNNING = {name: changes for name, changes in CONFIGURATIONS.items() if "dropout" not in name}
TOLERANCE = 1e-6


def prepared(ours, given: dict) -> dict:
    """The same call, with what can be made beforehand made beforehand."""
    return {
        "sample": given["sample"],
        "timestep": ours.time_states(given["timestep"], given["timestep_cond"]),
        "encoder_hidden_states": ours.text_keys_values(given["encoder_hidden_states"]),
    }


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("changes", RUNNING.values(), ids=RUNNING)
def test_equals_the_plain_call(changes, packed):
    _, ours = pair(**changes)
    given = inputs(ours)
    expected = ours(**given)
    if packed:
        ours.fuse_qkv_projections()
    assert relative_error(ours(**prepared(ours, given)), expected) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_equals_the_plain_call_in_any_dtype(dtype):
    _, ours = pair(in_channels=9)
    ours.to(dtype)
    given = {k: v.to(dtype) if v is not None and k != "timestep" else v for k, v in inputs(ours).items()}
    made = prepared(ours, given)
    assert made["timestep"].values.dtype == made["encoder_hidden_states"].values.dtype == dtype
    assert relative_error(ours(**made), ours(**given)) <= {torch.bfloat16: 1e-2, torch.float64: 1e-12}[dtype]


@torch.no_grad()
def test_no_layer_of_time_or_text_is_called_again():
    _, ours = pair()
    given = inputs(ours)
    made = prepared(ours, given)
    called = []
    for name, layer in ours.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda module, args, out, name=name: called.append(name))
    ours(**made)
    spared = ("time_emb_proj", "time_embedding", "attn2.to_k", "attn2.to_v")
    assert called
    assert not [name for name in called if any(part in name for part in spared)]
    ours(**given)
    assert all(any(part in name for name in called) for part in spared)


@torch.no_grad()
def test_rows_of_many_requests_are_put_together():
    _, ours = pair()
    given = inputs(ours, batch=5)
    schedule = torch.tensor([900.0, 600.5, 3.0])
    states = ours.time_states(schedule)
    texts = ours.text_keys_values(given["encoder_hidden_states"])
    assert len(states) == 3
    assert states.values.shape == (3, sum(states.widths))
    # a request of two rows at its step 1, one of three at its step 2; each row has a text of its own
    time = TimeStates.cat([states.rows(slice(1, 2)).repeated(2), states.rows(slice(2, 3)).repeated(3)])
    text = KeysValues.cat([texts.rows(slice(0, 2)), texts.rows(slice(2, None))])
    given["timestep"] = schedule[[1, 1, 2, 2, 2]]
    found = ours(given["sample"], time, text)
    assert relative_error(found, ours(**given)) <= TOLERANCE
    both = ours(given["sample"][:4], states.rows(slice(0, 2)).repeated(2), texts.rows(slice(0, 1)).repeated(4))
    given = {
        "sample": given["sample"][:4],
        "timestep": schedule[[0, 0, 1, 1]],
        "encoder_hidden_states": given["encoder_hidden_states"][:1].expand(4, -1, -1),
    }
    assert relative_error(both, ours(**given)) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("way", ["merged", "mixed"])
def test_they_carry_the_loras_they_were_made_with(way):
    bench = Bench()
    sets = [(Adapter(bench.lora(1), 0.8),), (Adapter(bench.lora(2)),), ()]
    expected = bench.merged(sets)
    sample, times, context = bench.batch(3)
    states, texts = [], []
    for row, adapters in enumerate(sets):
        if way == "merged":
            bench.merger.set_adapters(adapters)
            states.append(bench.unet.time_states(times[row : row + 1]))
            texts.append(bench.unet.text_keys_values(context[row : row + 1]))
    bench.merger.restore()
    with bench.mixed.rows(sets):
        if way == "mixed":
            states, texts = [bench.unet.time_states(times)], [bench.unet.text_keys_values(context)]
        found = bench.unet(sample, TimeStates.cat(states), KeysValues.cat(texts))
    assert worst_row(found, expected) <= 1e-5
    plain = bench.unet.text_keys_values(context)
    assert samples.relative(plain.values, KeysValues.cat(texts).values) > 1e-2


@torch.no_grad()
def test_what_does_not_fit_is_refused():
    _, ours = pair(time_cond_proj_dim=16)
    given = inputs(ours)
    made = prepared(ours, given)
    for field in ("timestep", "encoder_hidden_states"):
        with pytest.raises(InvalidParameter, match=f"`{field}` has 1 rows for a batch of 2"):
            ours(**{**made, field: made[field].rows(slice(0, 1))})
    with pytest.raises(InvalidParameter, match="timestep_cond"):
        ours(**made, timestep_cond=given["timestep_cond"])
    longer = ours.text_keys_values(torch.randn(2, 9, 32))
    with pytest.raises(InvalidParameter, match="one length"):
        KeysValues.cat([made["encoder_hidden_states"], longer])
    _, without = pair()
    with pytest.raises(InvalidParameter, match="time_cond_proj_dim"):
        without.time_states(torch.tensor([1]), given["timestep_cond"][:1])


def test_gradients_pass_through():
    _, ours = pair()
    given = inputs(ours)
    ours(**prepared(ours, given)).square().mean().backward()
    made = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    ours(**given).square().mean().backward()
    for name, p in ours.named_parameters():
        torch.testing.assert_close(made[name], p.grad, rtol=1e-3, atol=1e-5)
