"""Mixed LoRAs on a CUDA device, where one batched product serves all rows: each row as it is alone and merged."""

import pytest
import torch

from tests.engine.test_lora_mixed import Bench, worst_row
from tests.engine.test_pipeline_gpu import exact_products  # noqa: F401 - an autouse fixture: no TF32
from worker.engine.lora import Adapter
from worker.engine.lora.products import Batched

pytestmark = pytest.mark.gpu


def sets_of(bench: Bench) -> list[tuple[Adapter, ...]]:
    attention = tuple(name for name in bench.every_target() if "attn" in name)
    a, b, c = bench.lora(1), bench.lora(2, rank=9), bench.lora(3, names=attention)
    return [(Adapter(a),), (Adapter(a),), (), (), (Adapter(b, 0.6), Adapter(c, -0.5)), (Adapter(c),)]


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
def test_every_row_equals_its_merged_solo_run(channels_last):
    bench = Bench(channels_last=channels_last)
    sets = sets_of(bench)
    bench.to("cuda")
    assert worst_row(bench.side_by_side(sets), bench.merged(sets)) <= 1e-5
    products = next(iter(bench.mixed._plans.values()))._products.values()
    assert all(isinstance(product, Batched) for product in products)


def test_in_bfloat16_a_mixed_row_is_as_near_to_float32_as_a_merged_one():
    exact, half = Bench(), Bench(torch.bfloat16)
    half.unet.load_state_dict(exact.unet.state_dict())
    exact.unet.load_state_dict(half.unet.state_dict())
    sets = sets_of(exact)
    exact.to("cuda")
    half.to("cuda")
    truth = exact.merged(sets)
    errors = {name: worst_row(getattr(half, name)(sets), truth) for name in ("merged", "side_by_side")}
    assert errors["side_by_side"] <= 1.25 * errors["merged"], errors
