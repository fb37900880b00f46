"""Original single-file checkpoints: our components are the folder's they were made of, and diffusers agrees."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from tests.engine import ldm_files
from tests.engine.comparison import relative_error
from worker.engine import checkpoints, ldm_architecture, ldm_names
from worker.engine.errors import CheckpointInvalid, InvalidParameter, UnsafeWeightsFormat
from worker.engine.single_file import load_single_file
from worker.engine.unet import UNet2DConditionModel
from worker.engine.vae import AutoencoderKL

SD1 = {"in_channels": 9, "cross_attention_dim": 768}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
NETWORKS = ("unet", "vae", "text_encoder")


def assert_same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(("in_channels", "kind"), [(9, "inpaint"), (4, "plain"), (9, "sd2")])
@pytest.mark.parametrize("open_clip", [False, True])
def test_a_file_is_the_folder_it_was_made_of_and_diffusers_agrees(
    tiny_checkpoint, tmp_path, in_channels, kind, open_clip
):
    folder = tiny_checkpoint(in_channels, kind=kind)
    file = tmp_path / "model.safetensors"
    ldm_files.write(folder, file, open_clip=open_clip)
    ours, expected = load_single_file(file, config=folder), checkpoints.load_components(folder)
    theirs = diffusers.StableDiffusionInpaintPipeline.from_single_file(file, config=str(folder))
    assert ours.keys() == expected.keys()
    for name in NETWORKS:
        assert_same_weights(ours[name], expected[name])
        if not (
            open_clip and name == "text_encoder"
        ):  # diffusers skips layer 23 of real files, whatever is in the config
            assert_same_weights(ours[name], getattr(theirs, name))
        assert not ours[name].training
    assert dict(ours["unet"].config) == dict(expected["unet"].config)
    assert ours["tokenizer"]("a cat").input_ids == theirs.tokenizer("a cat").input_ids
    assert ours["safety_checker"] is theirs.safety_checker is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_asked_for(tiny_checkpoint, tmp_path, dtype):
    ldm_files.write(tiny_checkpoint(), tmp_path / "model.safetensors")
    parts = load_single_file(tmp_path / "model.safetensors", config=tiny_checkpoint(), torch_dtype=dtype)
    assert {parts[name].dtype for name in NETWORKS} == {dtype}


def test_a_folder_of_configurations_needs_no_weights_and_serves_both_kinds(tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint(4, kind="plain"), tmp_path / "configs"))
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    ldm_files.write(tiny_checkpoint(9), tmp_path / "inpaint.safetensors")
    unet = load_single_file(tmp_path / "inpaint.safetensors", config=folder)["unet"]
    assert unet.config.in_channels == unet.conv_in.weight.shape[1] == 9


@pytest.mark.parametrize("open_clip", [False, True])
@pytest.mark.parametrize(
    "unet",
    [
        {"attention_head_dim": 8},
        {"attention_head_dim": (1, 2), "use_linear_projection": True, "transformer_layers_per_block": 2},
    ],
    ids=["sd1", "sd2"],
)
def test_the_architecture_is_read_off_the_weights(tmp_path, unet, open_clip):
    torch.manual_seed(0)
    small = {"block_out_channels": (64, 128), "norm_num_groups": 32, "cross_attention_dim": 64, "sample_size": 64}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    vae = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 2,
        "sample_size": 512,
    }
    text = {
        "vocab_size": 600,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
    }
    expected = {
        "unet": diffusers.UNet2DConditionModel(in_channels=9, **small, **blocks, **unet),
        "vae": diffusers.AutoencoderKL(**vae),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text, hidden_act="gelu" if open_clip else "quick_gelu")),
    }
    for name, model in expected.items():
        model.eval().save_pretrained(tmp_path / name)
    ldm_files.write(tmp_path, tmp_path / "model.safetensors", open_clip=open_clip)
    parts = load_single_file(tmp_path / "model.safetensors", tokenizer="a tokenizer", scheduler="a scheduler")
    assert (parts["tokenizer"], parts["scheduler"], parts["feature_extractor"]) == ("a tokenizer", "a scheduler", None)
    for name, model in expected.items():
        assert_same_weights(parts[name], model)
    latents, words = torch.randn(1, 9, 8, 8), torch.randint(0, 600, (1, 77))
    with torch.no_grad():
        states = expected["text_encoder"](words).last_hidden_state
        # Close and not equal: mapped weights lie at other alignments, where kernels add in another order.
        close(parts["text_encoder"](words).last_hidden_state, states)
        close(parts["unet"](latents, 7, states), expected["unet"](latents, 7, states).sample)
        close(parts["vae"].decode(latents[:, :4]), expected["vae"].decode(latents[:, :4]).sample)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert relative_error(ours, theirs) <= 1e-6


def meta(model: type, **config) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return model(**config).state_dict()


@pytest.mark.parametrize("config", [SD1, SD2], ids=["sd15", "sd21"])
def test_the_unets_names_are_diffusers_at_full_size(config):
    wanted = meta(UNet2DConditionModel, **config)
    names = ldm_names.unet_names(wanted)
    original = {f"model.diffusion_model.{names[name]}": tensor for name, tensor in wanted.items()}
    assert len(original) == len(wanted)
    theirs = single_file_utils.convert_ldm_unet_checkpoint(dict(original), {"layers_per_block": 2})
    assert theirs.keys() == wanted.keys()
    assert all(theirs[name] is tensor for name, tensor in wanted.items())
    below = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in original.items()}
    ours = ldm_names.unet_tensors(below, wanted)
    assert all(ours[name] is tensor for name, tensor in wanted.items())
    inferred = meta(UNet2DConditionModel, **ldm_architecture.unet_config(below))
    assert {name: t.shape for name, t in inferred.items()} == {name: t.shape for name, t in wanted.items()}


def test_the_published_names_of_stable_diffusion_1():
    """A few names as they stand in the published file, so that we and diffusers are not wrong together."""
    names = ldm_names.unet_names(meta(UNet2DConditionModel, **SD1))
    assert names["down_blocks.0.resnets.0.norm1.weight"] == "input_blocks.1.0.in_layers.0.weight"
    assert names["down_blocks.0.downsamplers.0.conv.bias"] == "input_blocks.3.0.op.bias"
    assert names["down_blocks.3.resnets.1.conv2.weight"] == "input_blocks.11.0.out_layers.3.weight"
    assert names["mid_block.resnets.1.time_emb_proj.weight"] == "middle_block.2.emb_layers.1.weight"
    assert names["up_blocks.0.upsamplers.0.conv.weight"] == "output_blocks.2.1.conv.weight"
    assert names["up_blocks.1.upsamplers.0.conv.weight"] == "output_blocks.5.2.conv.weight"
    assert names["up_blocks.3.resnets.2.conv_shortcut.weight"] == "output_blocks.11.0.skip_connection.weight"
    key = "transformer_blocks.0.attn2.to_k.weight"
    assert names[f"down_blocks.0.attentions.1.{key}"] == f"input_blocks.2.1.{key}"
    assert names["conv_norm_out.bias"] == "out.0.bias"


def test_the_autoencoders_names_are_diffusers_at_full_size():
    wanted = meta(AutoencoderKL, **VAE)
    original = ldm_files.old_vae(wanted)
    assert "decoder.up.3.upsample.conv.weight" in original
    assert "encoder.mid.attn_1.proj_out.weight" in original
    prefixed = {f"first_stage_model.{name}": tensor for name, tensor in original.items()}
    theirs = single_file_utils.convert_ldm_vae_checkpoint(prefixed, VAE)
    ours = ldm_names.vae_tensors(original)
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    assert {name: tensor.shape for name, tensor in ours.items()} == shapes
    assert {name: tensor.shape for name, tensor in theirs.items()} == shapes
    inferred = meta(AutoencoderKL, **ldm_architecture.vae_config(original))
    assert {name: tensor.shape for name, tensor in inferred.items()} == shapes


def test_open_clip_equals_diffusers_reading_of_it():
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=23, num_attention_heads=1
    )
    model = CLIPTextModel(config)
    original = ldm_files.old_open_clip(model.state_dict())
    theirs = single_file_utils.convert_open_clip_checkpoint(
        model, {f"cond_stage_model.model.{name}": tensor for name, tensor in original.items()}
    )
    theirs = {name.removeprefix("text_model."): tensor for name, tensor in theirs.items()}
    ours = ldm_names.open_clip_tensors(original, layers=23)
    assert ours.keys() == theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# ---- what is wrong is named ----


@pytest.fixture
def file(tiny_checkpoint, tmp_path) -> Path:
    ldm_files.write(tiny_checkpoint(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("given", "says"),
    [({}, "no tokenizer and no scheduler"), ({"tokenizer": 1}, "no scheduler"), ({"scheduler": 1}, "no tokenizer")],
)
def test_without_a_folder_the_error_says_what_to_pass(file, given, says):
    with pytest.raises(InvalidParameter, match=f"`config`.*{says}.*layout of diffusers"):
        load_single_file(file, **given)


def test_a_component_nobody_knows(file, tiny_checkpoint):
    with pytest.raises(InvalidParameter, match="`unett`"):
        load_single_file(file, config=tiny_checkpoint(), unett=1)


def test_components_that_are_given_are_taken(file, tiny_checkpoint):
    tensors = {name: t for name, t in load_file(file).items() if not name.startswith("first_stage_model.")}
    save_file(tensors, file)
    with pytest.raises(CheckpointInvalid, match=r"no tensors below first_stage_model\..*vae=…"):
        load_single_file(file, config=tiny_checkpoint())
    parts = load_single_file(file, config=tiny_checkpoint(), vae="mine", feature_extractor=None)
    assert (parts["vae"], parts["feature_extractor"]) == ("mine", None)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."])
def test_missing_and_extra_tensors_are_named(file, tiny_checkpoint, prefix):
    tensors = load_file(file)
    gone = next(name for name in sorted(tensors) if name.startswith(prefix) and name.endswith("bias"))
    del tensors[gone]
    tensors[f"{prefix}stray.weight"] = torch.zeros(2)
    save_file(tensors, file)
    with pytest.raises(CheckpointInvalid, match=r"1 missing tensor \(.*1 unexpected tensor \(stray\.weight\)"):
        load_single_file(file, config=tiny_checkpoint())


def test_a_file_of_another_kind(tiny_checkpoint):
    weights = tiny_checkpoint() / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointInvalid, match=r"no tensor begins with model\.diffusion_model\.; it holds conv_in"):
        load_single_file(weights, config=tiny_checkpoint())


def test_an_unknown_architecture_asks_for_a_configuration(file):
    tensors = load_file(file)
    del tensors["model.diffusion_model.input_blocks.1.0.out_layers.3.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointInvalid, match="pass `config=`"):
        load_single_file(file, tokenizer=1, scheduler=1)


def test_a_pickle_and_a_missing_file(tiny_checkpoint, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "model.safetensors")
    with pytest.raises(UnsafeWeightsFormat, match="farm-worker convert"):
        load_single_file(tmp_path / "model.safetensors", config=tiny_checkpoint())
    with pytest.raises(CheckpointInvalid, match="is missing"):
        load_single_file(tmp_path / "nothing.safetensors", config=tiny_checkpoint())


def test_a_configuration_of_another_size(file, tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint(), tmp_path / "configs"))
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "block_out_channels": [32, 96]}))
    with pytest.raises(CheckpointInvalid, match="misshapen tensors"):
        load_single_file(file, config=folder)
