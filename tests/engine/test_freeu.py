"""FreeU against diffusers, in the UNet and its filter alone."""

import pytest
import torch
from diffusers.utils.torch_utils import fourier_filter

from tests.engine.comparison import relative_error
from tests.engine.test_unet import inputs, pair
from worker.engine.freeu import scale_low_frequencies

THREE_LEVELS = {
    "block_out_channels": (16, 32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (7, 5), (2, 2), (1, 1), (1, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_filter_equals_diffusers(size, dtype):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours = scale_low_frequencies(x, 0.4)
    assert ours.dtype == dtype
    assert torch.allclose(ours, fourier_filter(x, threshold=1, scale=0.4), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, THREE_LEVELS], ids=["two-levels", "three-levels"])
@pytest.mark.parametrize("size", [(8, 8), (12, 7)])
def test_the_unet_equals_diffusers(changes, size):
    theirs, ours = pair(**changes)
    given = inputs(theirs, 2, *size)
    plain = ours(**given)
    for model in (theirs, ours):
        model.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert relative_error(ours(**given), theirs(**given).sample) <= 1e-5
    assert relative_error(ours(**given), plain) > 1e-3
    ours.disable_freeu()
    assert torch.equal(ours(**given), plain)


@torch.no_grad()
def test_a_zero_leaves_it_off_as_in_diffusers():
    theirs, ours = pair()
    given = inputs(theirs)
    for model in (theirs, ours):
        model.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
        model.enable_freeu(s1=0.0, s2=0.2, b1=1.5, b2=1.6)
    assert relative_error(ours(**given), theirs(**given).sample) <= 1e-5


@torch.no_grad()
def test_every_row_equals_its_solo_run():
    theirs, ours = pair()
    given = inputs(theirs, batch=3)
    ours.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    crowd = ours(**given)
    for row in range(3):
        alone = ours(**{key: value[row : row + 1] for key, value in given.items() if value is not None})
        assert relative_error(crowd[row : row + 1], alone) <= 1e-5
