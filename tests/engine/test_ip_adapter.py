"""Image prompts in the UNet against diffusers, for every kind of adapter we run, alone and together."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.engine import ip_adapter_files as files
from tests.engine.comparison import relative_error
from tests.engine.conftest import VISION
from tests.engine.test_unet import inputs, pair
from worker.engine import checkpoints
from worker.engine.errors import CheckpointInvalid, InvalidParameter, UnsafeWeightsFormat
from worker.engine.ip_adapter import read_ip_adapter
from worker.engine.ip_attention import token_mask

CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
WIDTHS = [32, 64, 64, 64, 32, 32, 64]  # down 0 and 1, up 0 and 1 (two each), middle
EMBED, STATE, PATCHES = 24, 32, 5  # of the tiny image encoder: embedding, hidden state, number of hidden states

KINDS = {"plain": lambda: files.plain(EMBED), "full": lambda: files.full(STATE), "plus": lambda: files.plus(STATE)}


def made(*kinds: str, **changes):
    """Both UNets with adapters of these kinds, and the embeddings of two pictures for each."""
    theirs, ours = pair(in_channels=9, **CROSS, **changes)
    torch.manual_seed(7)
    adapters = [files.groups(KINDS[kind](), WIDTHS) for kind in kinds]
    theirs._load_ip_adapter_weights([{g: dict(t) for g, t in adapter.items()} for adapter in adapters])
    ours.load_ip_adapters(adapters)
    shapes = [(2, 2, EMBED) if kind == "plain" else (2, 2, PATCHES, STATE) for kind in kinds]
    return theirs, ours, inputs(theirs), [torch.randn(shape) for shape in shapes]


def set_scales(theirs, ours, scale) -> None:
    """Through diffusers' own reading of them."""
    from diffusers.loaders.ip_adapter import IPAdapterMixin

    pipeline = type("Pipeline", (IPAdapterMixin,), {"unet_name": "unet"})()
    pipeline.unet = theirs
    pipeline.set_ip_adapter_scale(scale)
    ours.set_ip_adapter_scale(scale)


def run_both(theirs, ours, given, embeds, masks=None):
    kwargs = {"ip_adapter_masks": masks} if masks is not None else None
    expected = theirs(**given, added_cond_kwargs={"image_embeds": embeds}, cross_attention_kwargs=kwargs).sample
    return ours(**given, ip_hidden_states=ours.project_image_embeds(embeds), ip_adapter_masks=masks), expected


@torch.no_grad()
@pytest.mark.parametrize("kinds", [("plain",), ("full",), ("plus",), ("plain", "plus"), ("plus", "plain", "plus")])
def test_the_unet_equals_diffusers(kinds):
    theirs, ours, given, embeds = made(*kinds)
    mine, expected = run_both(theirs, ours, given, embeds)
    assert relative_error(mine, expected) <= 1e-5
    assert relative_error(mine, ours(**given)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_projection_equals_diffusers(kind):
    theirs, ours, _, embeds = made(kind)
    expected = theirs.encoder_hid_proj(embeds)
    assert relative_error(ours.project_image_embeds(embeds)[0], expected[0]) <= 1e-5
    assert ours.ip_adapters[0].uses_hidden_states == (kind != "plain")


@torch.no_grad()
@pytest.mark.parametrize(
    "scale",
    [
        0.0,
        0.35,
        -1,
        {"up": {"block_0": [0.0, 1.0]}},
        {"down": {"block_1": [0.5]}, "mid": 2.0},
        {"down": 0.7, "up": {"block_0": 0.1, "block_1": [0.2, 0.3]}, "mid": [0.4]},
        {"up": [0.3, 0.6]},
        {},
    ],
    ids=str,
)
def test_scales_equal_diffusers(scale):
    theirs, ours, given, embeds = made("plain")
    set_scales(theirs, ours, [scale])
    mine, expected = run_both(theirs, ours, given, embeds)
    assert relative_error(mine, expected) <= 1e-5


@torch.no_grad()
def test_a_scale_for_each_adapter():
    theirs, ours, given, embeds = made("plain", "plus")
    set_scales(theirs, ours, [{"down": 1.5}, 0.25])
    mine, expected = run_both(theirs, ours, given, embeds)
    assert relative_error(mine, expected) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("scales", [[0.8, 0.6], [[0.3, 0.9], 0.5], [[0.0, 0.0], [1.0, 0.0]]], ids=str)
def test_masks_equal_diffusers(scales):
    theirs, ours, given, embeds = made("plain", "plus")
    set_scales(theirs, ours, scales)
    masks = [torch.rand(1, 2, 64, 64).round(), torch.rand(1, 2, 64, 64).round()]
    mine, expected = run_both(theirs, ours, given, embeds, masks)
    assert relative_error(mine, expected) <= 1e-5
    set_scales(theirs, ours, [0.8, 0.6])
    mine, expected = run_both(theirs, ours, given, embeds, [masks[0], None])
    assert relative_error(mine, expected) <= 1e-5


@pytest.mark.parametrize("tokens", [64, 16, 24, 6, 1, 35, 100])
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (40, 64)])
@pytest.mark.filterwarnings("ignore:The aspect ratio")
def test_a_mask_lands_on_the_tokens_as_in_diffusers(tokens, size):
    from diffusers.image_processor import IPAdapterMaskProcessor

    mask = torch.rand(1, *size)
    if int((tokens * size[0] / size[1]) ** 0.5) == 0:
        assert token_mask(mask, tokens).shape == (1, tokens, 1)  # diffusers divides by zero
    else:
        assert torch.allclose(
            token_mask(mask, tokens), IPAdapterMaskProcessor.downsample(mask, 1, tokens, 1), atol=1e-6
        )


@torch.no_grad()
def test_half_precision_equals_diffusers():
    theirs, ours, given, embeds = made("plain", "plus")
    theirs, ours = theirs.to(torch.bfloat16), ours.to(torch.bfloat16)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    given = {
        key: value.bfloat16() if key != "timestep" and value is not None else value for key, value in given.items()
    }
    mine, expected = run_both(theirs, ours, given, [e.bfloat16() for e in embeds])
    assert relative_error(mine, expected) <= 1e-2


@torch.no_grad()
def test_pictures_of_one_adapter_may_come_in_one_row_of_tokens():
    _, ours, given, embeds = made("plus")
    tokens = ours.project_image_embeds(embeds)
    apart, together = ours(**given, ip_hidden_states=tokens), ours(**given, ip_hidden_states=[tokens[0].flatten(1, 2)])
    assert torch.equal(apart, together)


@torch.no_grad()
@pytest.mark.parametrize("setting", ["slices", "fused", "freeu"])
def test_other_settings_keep_the_image_prompt(setting):
    _, ours, given, embeds = made("plain", "plus")
    tokens = ours.project_image_embeds(embeds)
    before = ours(**given, ip_hidden_states=tokens)
    if setting == "slices":
        ours.set_attention_slice("max")
    elif setting == "fused":
        ours.fuse_qkv_projections()
    else:
        ours.enable_freeu(1.0, 1.0, 1.0, 1.0)
    assert relative_error(ours(**given, ip_hidden_states=tokens), before) <= 1e-5


@torch.no_grad()
def test_every_row_equals_its_solo_run():
    _, ours, given, embeds = made("plain", "plus")
    tokens = ours.project_image_embeds(embeds)
    crowd = ours(**given, ip_hidden_states=tokens)
    for row in range(2):
        alone = {key: value[row : row + 1] for key, value in given.items() if value is not None}
        mine = ours(**alone, ip_hidden_states=[t[row : row + 1] for t in tokens])
        assert relative_error(crowd[row : row + 1], mine) <= 1e-5


@torch.no_grad()
def test_unloading_leaves_no_trace(tmp_path):
    _, ours, given, embeds = made("plain")
    plain, names = pair(in_channels=9, **CROSS)[1], set(ours.state_dict())
    assert any(name.startswith("ip_adapters.") for name in names)
    checkpoints.save_model(ours, tmp_path)
    assert load_file(tmp_path / "diffusion_pytorch_model.safetensors").keys() == plain.state_dict().keys()
    with_image = ours(**given, ip_hidden_states=ours.project_image_embeds(embeds))
    ours.unload_ip_adapters()
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(ours(**given), plain(**given))
    assert relative_error(with_image, ours(**given)) > 1e-3


@torch.no_grad()
def test_from_a_picture_through_the_image_encoder():
    """The way of the pipeline: a plain adapter takes the embedding, a plus one the hidden states but one."""
    theirs, ours, given, _ = made("plain", "plus")
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).eval()
    out = encoder(torch.rand(2, 3, 32, 32), output_hidden_states=True)
    views = {False: out.image_embeds, True: out.hidden_states[-2]}
    embeds = [views[adapter.uses_hidden_states][:, None] for adapter in ours.ip_adapters]
    mine, expected = run_both(theirs, ours, given, embeds)
    assert relative_error(mine, expected) <= 1e-5


def test_a_resampler_under_diffusers_names():
    _, ours = pair(**CROSS)
    original = files.plus(STATE)
    ours.load_ip_adapters([files.groups(original, WIDTHS)])
    expected = ours.ip_adapters[0].projection.state_dict()
    renamed = {}
    for name, tensor in expected.items():
        name = name.replace(".ff.1.", ".ff.1.net.0.proj.").replace(".ff.3.", ".ff.1.net.2.")
        renamed[name] = tensor
    ours.load_ip_adapters([{"image_proj": renamed, "ip_adapter": files.layers(WIDTHS)}])
    assert all(torch.equal(t, expected[name]) for name, t in ours.ip_adapters[0].projection.state_dict().items())


# ---- files, and what is wrong with them ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_back(tmp_path, kind):
    adapter = files.groups(KINDS[kind](), WIDTHS)
    save_file(files.flat(adapter), tmp_path / "ip.safetensors")
    read = read_ip_adapter(tmp_path / "ip.safetensors")
    assert read.keys() == adapter.keys()
    assert all(torch.equal(t, adapter[group][name]) for group in read for name, t in read[group].items())


def test_files_that_are_no_adapters(tmp_path):
    path = tmp_path / "ip.safetensors"
    with pytest.raises(CheckpointInvalid, match="is missing"):
        read_ip_adapter(path)
    save_file({"conv_in.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointInvalid, match=r"conv_in\.weight is below neither"):
        read_ip_adapter(path)
    torch.save(files.groups(files.plain(EMBED), WIDTHS), path)
    with pytest.raises(UnsafeWeightsFormat, match="farm-worker convert"):
        read_ip_adapter(path)


def broken(change):
    adapter = files.groups(files.plain(EMBED), WIDTHS)
    change(adapter)
    return adapter


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (lambda: broken(lambda a: a["ip_adapter"].pop("3.to_k_ip.weight")), r"1 missing tensor \(3\.to_k_ip\.weight\)"),
        (lambda: broken(lambda a: a["ip_adapter"].update(stray=torch.ones(1))), r"1 unexpected tensor \(stray\)"),
        (lambda: broken(lambda a: a["image_proj"].pop("norm.bias")), r"image_proj: .*1 missing tensor \(norm\.bias\)"),
        (lambda: files.groups(files.plain(EMBED), WIDTHS[::-1]), "misshapen tensors"),
        (lambda: files.groups(files.plain(EMBED), [*WIDTHS, 64]), "2 unexpected tensors"),
        (lambda: files.groups({"odd": torch.ones(1)}, WIDTHS), "of no kind of IP-Adapter"),
        (lambda: files.groups({**files.full(STATE), "norm.weight": torch.ones(32)}, WIDTHS), "FaceID"),
        (lambda: {"image_proj": files.plain(EMBED), "ip_adapter": {}}, "no ip_adapter"),
        (lambda: files.groups({"latents": torch.ones(1, 4, 48)}, WIDTHS), "resampler lacks 'proj_in.weight'"),
    ],
)
def test_a_bad_adapter_is_named_and_changes_nothing(adapter, says):
    _, ours, given, embeds = made("plain")
    tokens = ours.project_image_embeds(embeds)
    with torch.no_grad():
        before = ours(**given, ip_hidden_states=tokens)
        with pytest.raises(CheckpointInvalid, match=f"brand.*{says}"):
            ours.load_ip_adapters([adapter()], names=["brand"])
        assert torch.equal(ours(**given, ip_hidden_states=tokens), before)


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        ([0.5, 0.5], "2 entries and there are 1"),
        ({"sideways": 1.0}, "no place 'sideways'"),
        ({"down": {"block_7": 1.0}}, r"no block down\.block_7"),
        ({"mid": {"block_0": 1.0}}, r"no block mid\.block_0"),
        ({"up": {"block_0": [1.0, 1.0, 1.0]}}, "3 numbers for a block of 2"),
        (float("nan"), "finite"),
        ("strong", "finite"),
        ({"mid": True}, "finite"),
    ],
    ids=str,
)
def test_impossible_scales_are_refused_and_change_nothing(scale, says):
    _, ours, _, _ = made("plain")
    with pytest.raises(InvalidParameter, match=says):
        ours.set_ip_adapter_scale(scale)
    assert {layer.scale for layer in ours.ip_adapters[0].layers} == {1.0}


def test_prompts_that_do_not_fit_the_adapters():
    _, ours, given, embeds = made("plain")
    tokens = ours.project_image_embeds(embeds)
    with pytest.raises(InvalidParameter, match="ip_adapter_image_embeds"):
        ours.project_image_embeds([*embeds, *embeds])
    with pytest.raises(InvalidParameter, match="ip_hidden_states"):
        ours(**given, ip_hidden_states=[*tokens, *tokens])
    for masks in ([None, None], [torch.ones(1, 3, 8, 8)], [torch.ones(2, 8, 8)]):
        with pytest.raises(InvalidParameter, match="ip_adapter_masks"):
            ours(**given, ip_hidden_states=tokens, ip_adapter_masks=masks)
    ours.set_ip_adapter_scale([[0.5, 0.5]])
    with pytest.raises(InvalidParameter, match="needs `ip_adapter_masks`"):
        ours(**given, ip_hidden_states=tokens)
    ours.set_ip_adapter_scale([[0.5, 0.5, 0.5]])
    with pytest.raises(InvalidParameter, match="3 numbers and the adapter 2 pictures"):
        ours(**given, ip_hidden_states=tokens, ip_adapter_masks=[torch.ones(1, 2, 8, 8)])
