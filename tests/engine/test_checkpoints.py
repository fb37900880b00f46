"""Checkpoint folders: everything diffusers wrote is read, everything wrong with one is named."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from worker.engine import checkpoints
from worker.engine.errors import CheckpointInvalid, UnsafeWeightsFormat
from worker.engine.unet import UNet2DConditionModel

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_checkpoint, tmp_path) -> Path:
    """A checkpoint of one's own, to spoil."""
    return Path(shutil.copytree(tiny_checkpoint(), tmp_path / "checkpoint"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_component_is_loaded(tiny_checkpoint):
    parts = checkpoints.load_components(tiny_checkpoint(safety_checker=True, image_encoder=True))
    assert {name: type(part).__name__ for name, part in parts.items()} == {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "scheduler": "DDIMScheduler",
        "safety_checker": "StableDiffusionSafetyChecker",
        "feature_extractor": "CLIPImageProcessorPil",
        "image_encoder": "CLIPVisionModelWithProjection",
    }


def test_absent_components_are_none(tiny_checkpoint):
    parts = checkpoints.load_components(tiny_checkpoint())
    assert parts["safety_checker"] is parts["feature_extractor"] is parts["image_encoder"] is None


def test_components_can_be_left_out(tiny_checkpoint):
    parts = checkpoints.load_components(tiny_checkpoint(), without=("unet", "vae"))
    assert not parts.keys() & {"unet", "vae"}
    assert parts["text_encoder"] is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_in_the_dtype_asked_for(tiny_checkpoint, dtype):
    parts = checkpoints.load_components(tiny_checkpoint(), dtype)
    for name in ("unet", "vae", "text_encoder"):
        assert {p.dtype for p in parts[name].parameters()} == {dtype}
        assert parts[name].dtype == dtype
        assert not parts[name].training


def test_what_is_written_to_a_weight_never_reaches_its_file(copy):
    path = copy / "unet" / WEIGHTS
    stored = path.read_bytes()
    unet = checkpoints.load_component(copy, "unet")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(1)
    assert path.read_bytes() == stored


def test_a_file_can_be_replaced_while_its_weights_are_in_use(copy):
    unet = checkpoints.load_component(copy, "unet")
    before = unet.conv_in.weight.clone()
    path = copy / "unet" / WEIGHTS
    other = path.with_suffix(".new")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)
    assert torch.equal(unet.conv_in.weight, before)


def test_configuration_keeps_what_the_file_says_and_is_frozen(tiny_checkpoint):
    config = checkpoints.load_component(tiny_checkpoint(), "unet").config
    assert config.in_channels == config["in_channels"] == config.get("in_channels") == 9
    assert config.block_out_channels == (32, 64)
    assert config._diffusers_version == diffusers.__version__
    with pytest.raises(AttributeError, match="frozen"):
        config.in_channels = 4


def test_saved_checkpoint_is_read_by_diffusers_and_by_us(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(safety_checker=True)
    parts = checkpoints.load_components(source)
    checkpoints.save_components(tmp_path, parts, options={"requires_safety_checker": True})
    assert checkpoints.read_options(tmp_path) == {"requires_safety_checker": True}
    again = checkpoints.load_components(tmp_path)
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path)
    for name in ("unet", "vae", "text_encoder", "safety_checker"):
        original, ours = parts[name].state_dict(), again[name].state_dict()
        assert original.keys() == ours.keys()
        assert all(torch.equal(original[key], ours[key]) for key in original)
        assert all(torch.equal(t, original[key]) for key, t in getattr(theirs, name).state_dict().items())
    assert dict(again["unet"].config) == dict(parts["unet"].config)
    assert theirs.tokenizer("a cat").input_ids == parts["tokenizer"]("a cat").input_ids
    assert theirs.scheduler.config.beta_schedule == parts["scheduler"].config["beta_schedule"]


@pytest.mark.parametrize("save_pretrained", [{"max_shard_size": "100KB"}, {"variant": "fp16"}])
def test_shards_and_variants(tiny_checkpoint, tmp_path, save_pretrained):
    source = tiny_checkpoint()
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(source)
    pipe.save_pretrained(tmp_path, **save_pretrained)
    assert not (tmp_path / "unet" / WEIGHTS).exists()
    expected = load_file(source / "unet" / WEIGHTS)
    unet = checkpoints.load_components(tmp_path, variant=save_pretrained.get("variant"))["unet"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in unet.state_dict().items())


def test_a_variant_that_only_some_components_have(copy):
    half = {name: tensor.half() for name, tensor in load_file(copy / "unet" / WEIGHTS).items()}
    save_file(half, copy / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    parts = checkpoints.load_components(copy, variant="fp16")
    assert (parts["unet"].dtype, parts["vae"].dtype) == (torch.float16, torch.float32)


def test_a_variant_that_no_component_has(tiny_checkpoint):
    with pytest.raises(CheckpointInvalid, match="no weights of the variant 'fp16'"):
        checkpoints.load_components(tiny_checkpoint(), variant="fp16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoder_equals_transformers(copy, prefix, dtype):
    path = copy / "text_encoder" / "model.safetensors"
    named = {prefix + name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}
    positions = {prefix + "embeddings.position_ids": torch.arange(77)[None]} if prefix else {}
    save_file(named | positions, path, metadata={"format": "pt"})
    ours = checkpoints.load_component(copy, "text_encoder", dtype)
    theirs = CLIPTextModel.from_pretrained(copy / "text_encoder", dtype=dtype)
    tokens = torch.randint(0, 512, (2, 77))
    with torch.no_grad():
        a, b = ours(tokens, output_hidden_states=True), theirs(tokens, output_hidden_states=True)
    assert all(torch.equal(x, y) for x, y in zip(a.hidden_states, b.hidden_states, strict=True))
    assert torch.equal(a.last_hidden_state, b.last_hidden_state)


def test_image_encoder_and_feature_extractor_equal_transformers(tiny_checkpoint):
    folder = tiny_checkpoint(image_encoder=True)
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(folder)
    picture = torch.rand(3, 40, 50).numpy()
    pixels = checkpoints.load_component(folder, "feature_extractor")(picture, return_tensors="pt", do_rescale=False)
    expected = theirs.feature_extractor(picture, return_tensors="pt", do_rescale=False)
    assert torch.equal(pixels.pixel_values, expected.pixel_values)
    with torch.no_grad():
        ours = checkpoints.load_component(folder, "image_encoder")(pixels.pixel_values, output_hidden_states=True)
        their = theirs.image_encoder(pixels.pixel_values, output_hidden_states=True)
    assert torch.equal(ours.image_embeds, their.image_embeds)
    assert torch.equal(ours.hidden_states[-2], their.hidden_states[-2])


@pytest.mark.parametrize("given", [None, 77, 50])
def test_a_tokenizer_without_a_length_takes_77(copy, given):
    path = copy / "tokenizer" / "tokenizer_config.json"
    entries = {key: value for key, value in json.loads(path.read_text()).items() if key != "model_max_length"}
    path.write_text(json.dumps(entries | ({"model_max_length": given} if given else {})))
    assert checkpoints.load_component(copy, "tokenizer").model_max_length == (given or 77)


def test_an_autoencoder_with_the_layer_names_of_old(copy):
    path = copy / "vae" / WEIGHTS
    new = load_file(path)
    old = {
        name.replace("to_q.", "query.")
        .replace("to_k.", "key.")
        .replace("to_v.", "value.")
        .replace("to_out.0.", "proj_attn."): t
        for name, t in new.items()
    }
    assert len(old.keys() - new.keys()) == 16  # weight and bias of four layers, in encoder and decoder
    save_file(old, path)
    vae = checkpoints.load_component(copy, "vae")
    assert all(torch.equal(tensor, new[name]) for name, tensor in vae.state_dict().items())


# ---- what is wrong is named ----


def spoil(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_missing_extra_and_misshapen_tensors_are_counted_and_five_are_named(copy, component):
    path = next((copy / component).glob("*.safetensors"))
    names = sorted(load_file(path))

    def change(tensors):
        for name in names[:7]:
            del tensors[name]
        tensors["stray"] = torch.zeros(1)
        tensors[names[8]] = torch.zeros(3, 3, 3)

    spoil(path, change)
    with pytest.raises(CheckpointInvalid) as caught:
        checkpoints.load_component(copy, component)
    message = str(caught.value)
    assert f"7 missing tensors ({', '.join(n.removeprefix('text_model.') for n in names[:5])} and 2 more)" in message
    assert names[5] not in message
    assert "1 unexpected tensor (stray)" in message
    assert f"1 misshapen tensor ({names[8].removeprefix('text_model.')} is [3, 3, 3] and should be" in message
    assert component in message


@pytest.mark.parametrize("name", [WEIGHTS, "diffusion_pytorch_model.bin", "weights.ckpt", "anything"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_by_their_bytes(copy, name, zipped):
    tensors = load_file(copy / "unet" / WEIGHTS)
    (copy / "unet" / WEIGHTS).unlink()
    torch.save(tensors, copy / "unet" / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeWeightsFormat, match="farm-worker convert"):
        checkpoints.load_component(copy, "unet")


def test_a_header_of_640_bytes_is_no_pickle(tmp_path):
    from worker.engine.weights_file import is_pickle, read_safetensors

    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(640).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes((640).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert not is_pickle(path)
    assert read_safetensors(path)["a"].item() == 0


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, b"not weights at all", (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_no_safetensors(copy, content):
    (copy / "unet" / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointInvalid, match="not a sound safetensors file"):
        checkpoints.load_component(copy, "unet")


def test_a_truncated_file(copy):
    path = copy / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointInvalid, match="not a sound safetensors file"):
        checkpoints.load_component(copy, "unet")


@pytest.mark.parametrize(
    ("removed", "says"),
    [
        ("model_index.json", "model_index.json is missing"),
        ("unet", "unet is missing, and model_index.json names it"),
        ("vae/config.json", "config.json is missing"),
        (f"vae/{WEIGHTS}", "no weights at all|is missing"),
        ("tokenizer", "tokenizer is missing"),
        ("text_encoder/model.safetensors", "model.safetensors is missing"),
    ],
)
def test_missing_files_and_folders_are_named(copy, removed, says):
    path = copy / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointInvalid, match=says):
        checkpoints.load_components(copy)


def test_an_empty_tokenizer_folder(copy):
    for path in (copy / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(CheckpointInvalid, match=r"neither tokenizer\.json nor vocab\.json"):
        checkpoints.load_component(copy, "tokenizer")


def test_no_folder_at_all(tmp_path):
    with pytest.raises(CheckpointInvalid, match="is not a folder"):
        checkpoints.load_components(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "component `text_encoder_2`"),
        ({"unet": ["diffusers", "UNetSpatioTemporalConditionModel"]}, "`unet` is a 'UNetSpatioTemporalConditionModel'"),
        ({"vae": [None, None]}, "does not name vae"),
    ],
)
def test_components_of_other_pipelines_are_refused(copy, changes, says):
    edit(copy / "model_index.json", **changes)
    with pytest.raises(CheckpointInvalid, match=says):
        checkpoints.load_components(copy)


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("unet", "class_embed_type", "timestep"),
        ("unet", "num_class_embeds", 10),
        ("unet", "addition_embed_type", "text_time"),
        ("unet", "encoder_hid_dim_type", "text_proj"),
        ("unet", "resnet_time_scale_shift", "scale_shift"),
        ("unet", "time_embedding_type", "fourier"),
        ("unet", "act_fn", "gelu"),
        ("unet", "attention_type", "gated"),
        ("unet", "dual_cross_attention", True),
        ("unet", "down_block_types", ["KDownBlock2D", "DownBlock2D"]),
        ("unet", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("unet", "transformer_layers_per_block", [[1], [1]]),
        ("unet", "num_attention_heads", 4),
        ("unet", "layers_per_block", [1, 1, 1]),
        ("unet", "norm_num_groups", 7),
        ("unet", "in_channels", "9"),
        ("unet", "secret_switch", 3),
        ("vae", "act_fn", "relu"),
        ("vae", "latents_mean", [0.0, 0.0, 0.0, 0.0]),
        ("vae", "shift_factor", 0.1),
        ("vae", "up_block_types", ["UpDecoderBlock2D"]),
        ("vae", "latent_channels", True),
    ],
)
def test_configurations_we_do_not_run_name_their_key(copy, component, key, value):
    edit(copy / component / "config.json", **{key: value})
    with pytest.raises(CheckpointInvalid, match=f"`{key}`"):
        checkpoints.load_component(copy, component)


def test_a_key_nobody_knows_is_harmless_if_it_is_off(copy):
    edit(copy / "unet" / "config.json", some_new_option=None, another=False)
    assert "another" not in checkpoints.load_component(copy, "unet").config


def test_a_model_saved_from_its_moving_average(tiny_checkpoint, tmp_path):
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tiny_checkpoint(), subfolder="unet")
    average = EMAModel(theirs.parameters(), model_cls=type(theirs), model_config=theirs.config, use_ema_warmup=True)
    average.save_pretrained(tmp_path)
    unet = checkpoints.load_model(UNet2DConditionModel, tmp_path)
    assert unet.config.use_ema_warmup is True
    assert all(torch.equal(t, theirs.state_dict()[name]) for name, t in unet.state_dict().items())


@pytest.mark.parametrize("content", ["", "[1]", "{", "\ud800"])
def test_a_config_that_is_no_json_object(copy, content):
    (copy / "unet" / "config.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(CheckpointInvalid, match=r"config\.json"):
        checkpoints.load_component(copy, "unet")


def shard(folder: Path) -> Path:
    """Split the UNet's weights in two files and an index; returns the index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
    return index


def test_shards_are_put_together(copy):
    expected = load_file(copy / "unet" / WEIGHTS)
    shard(copy / "unet")
    unet = checkpoints.load_component(copy, "unet")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in unet.state_dict().items())


def test_a_missing_shard_is_named(copy):
    index = shard(copy / "unet")
    index.with_name("b.safetensors").unlink()
    with pytest.raises(CheckpointInvalid, match=r"b\.safetensors is missing"):
        checkpoints.load_component(copy, "unet")


def test_a_shard_that_disagrees_with_its_index(copy):
    index = shard(copy / "unet")
    spoil(index.with_name("b.safetensors"), lambda tensors: tensors.pop("conv_in.weight"))
    with pytest.raises(CheckpointInvalid, match=r"disagree about 1 tensors \(conv_in\.weight\)"):
        checkpoints.load_component(copy, "unet")


@pytest.mark.parametrize("where", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_cannot_lead_out_of_its_folder(copy, where):
    index = shard(copy / "unet")
    edit(index, weight_map={"conv_in.weight": where})
    with pytest.raises(CheckpointInvalid, match="not a file beside it"):
        checkpoints.load_component(copy, "unet")
