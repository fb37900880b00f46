"""Real module names: every spelling of every target of Stable Diffusion's full-size models means that target alone."""

import json
import re

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from transformers import CLIPTextConfig, CLIPTextModel

from tests.engine import lora_samples as samples
from worker.engine.lora import TargetTable, read_lora, target_table
from worker.engine.lora.formats.ldm import ldm_paths
from worker.engine.unet import UNet2DConditionModel

SD15 = {
    "sample_size": 64,
    "in_channels": 9,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD21 = {**SD15, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}


def full_size(config: dict) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    text = {"hidden_size": config["cross_attention_dim"], "num_attention_heads": config["cross_attention_dim"] // 64}
    with torch.device("meta"):
        return UNet2DConditionModel(**config), CLIPTextModel(CLIPTextConfig(**text, num_hidden_layers=12))


@pytest.fixture(scope="module", params=[SD15, SD21], ids=["SD 1.5", "SD 2.1"])
def table(request) -> TargetTable:
    return TargetTable.of(*full_size(request.param))


def test_the_table_has_every_linear_layer_and_convolution(table):
    unet = [t for t in table.targets.values() if t.component == "unet"]
    text = [t for t in table.targets.values() if t.component == "text_encoder"]
    # Per transformer 8 attention projections, 2 of the feed-forward, in and out; 16 transformers; 22 residual blocks
    # with 2 convolutions and a time projection, 14 of them with a shortcut; 6 samplers; 4 around.
    assert len(unet) == 16 * 12 + 22 * 3 + 14 + 6 + 4
    assert len(text) == 12 * 6
    assert table.targets["unet.conv_in"].shape == (320, 9, 3, 3)
    assert table.targets[samples.TEXT].kind == "linear"


@pytest.mark.parametrize(
    ("component", "prefix"),
    [("unet", "lora_unet_"), ("unet", "lycoris_"), ("text_encoder", "lora_te_"), ("text_encoder", "lora_te1_")],
)
def test_kohyas_spelling_of_diffusers_names_resolves_for_every_target(table, component, prefix):
    targets = [t for t in table.targets.values() if t.component == component]
    for target in targets:
        assert table.stems[prefix + target.path.replace(".", "_")] == target.name


def test_ldm_names_are_those_diffusers_converts_checkpoints_by(table):
    unet = [t for t in table.targets.values() if t.component == "unet"]
    named = ldm_paths(t.path for t in unet)
    assert named.keys() == {t.path for t in unet}
    assert len(set(named.values())) == len(named)
    # The converter wants biases and norms to be there; which weight goes where is told by its number.
    numbers = {path: torch.tensor(float(i)) for i, path in enumerate(named)}
    checkpoint = {f"model.diffusion_model.{ldm}.weight": numbers[path] for path, ldm in named.items()}
    for name in [*checkpoint, "model.diffusion_model.out.0.weight"]:
        checkpoint.setdefault(name, torch.zeros(()))
        checkpoint[name.replace("weight", "bias")] = torch.zeros(())
    converted = convert_ldm_unet_checkpoint(checkpoint, config={**SD15, "class_embed_type": None})
    found = {path: converted[f"{path}.weight"] for path in named}
    assert {path: int(t) for path, t in found.items()} == {path: int(t) for path, t in numbers.items()}


@pytest.mark.parametrize(
    ("ldm", "path"),
    [
        ("input_blocks_0_0", "conv_in"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_11_0_emb_layers_1", "down_blocks.3.resnets.1.time_emb_proj"),
        ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("output_blocks_11_0_skip_connection", "up_blocks.3.resnets.2.conv_shortcut"),
        ("time_embed_2", "time_embedding.linear_2"),
        ("out_2", "conv_out"),
    ],
)
def test_ldm_names_of_the_published_checkpoint(table, ldm, path):
    assert table.stems[f"lora_unet_{ldm}"] == f"unet.{path}"


def test_kohyas_spelling_of_ldm_names_resolves_for_every_target(table):
    unet = [t for t in table.targets.values() if t.component == "unet"]
    for path, ldm in ldm_paths(t.path for t in unet).items():
        assert table.stems[f"lora_unet_{ldm.replace('.', '_')}"] == f"unet.{path}"


def test_a_kohya_file_for_every_attention_layer_means_what_diffusers_makes_of_it(table):
    names = [n for n in table.targets if re.search(r"attn|\.ff\.|proj_|mlp", n)]
    tensors = {}
    for i, name in enumerate(names):
        shape = table.targets[name].shape
        for role, size in (("down", (1, *shape[1:])), ("up", (shape[0], 1, *(1 for _ in shape[2:])))):
            tensors[samples.kohya_key(name, role)] = torch.full(size, 1e-3).index_fill_(0, torch.tensor(0), i)
    theirs, _ = _convert_non_diffusers_lora_to_diffusers(dict(tensors))
    ours = read_lora(tensors, table).deltas
    again = read_lora(theirs, table).deltas
    assert ours.keys() == again.keys() == set(names)
    assert all(torch.equal(ours[n].up, again[n].up) and torch.equal(ours[n].down, again[n].down) for n in names)


def test_the_table_is_plain_json_and_comes_back_whole(table):
    data = json.loads(json.dumps(table.to_json()))
    again = TargetTable.from_json(data)
    assert again.targets == table.targets and again.stems == table.stems
    # What a client without torch does with it: cut a known leaf off, look the rest up.
    key = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k.lora_down.weight"
    stems = [m[1] for leaf, _ in data["leaves"] if (m := re.fullmatch(f"(.+?){leaf}", key))]
    assert [data["stems"][stem] for stem in stems] == [f"unet.{samples.ATTENTION}.attn2.to_k"]
    with pytest.raises(ValueError, match="version 99"):
        TargetTable.from_json({**data, "version": 99})


def test_target_table_is_the_tables_json():
    unet, text_encoder = samples.models()
    assert target_table(unet, text_encoder) == TargetTable.of(unet, text_encoder).to_json()
    assert not any(name.startswith("text") for name in target_table(unet)["targets"])
