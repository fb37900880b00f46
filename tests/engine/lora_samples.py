"""Small models, LoRA files of every family, and what each must do to a weight: index sums in float64."""

import json
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from worker.engine.unet import UNet2DConditionModel

UNET_CONFIG = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
TEXT_CONFIG = {
    "vocab_size": 99,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 97,
    "eos_token_id": 98,
}

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"
LINEAR, CROSS = f"unet.{ATTENTION}.attn1.to_q", f"unet.{ATTENTION}.attn2.to_k"
OUT, FEED = f"unet.{ATTENTION}.attn2.to_out.0", f"unet.{ATTENTION}.ff.net.0.proj"
POINT, CONV = "unet.mid_block.attentions.0.proj_in", "unet.up_blocks.0.resnets.1.conv1"
DOWNSAMPLE, UPSAMPLE = "unet.down_blocks.0.downsamplers.0.conv", "unet.up_blocks.0.upsamplers.0.conv"
TEXT, TEXT_FEED = (f"text_encoder.text_model.encoder.layers.{p}" for p in ("0.self_attn.q_proj", "1.mlp.fc1"))
TEXT_OUT = "text_encoder.text_model.encoder.layers.1.self_attn.out_proj"
NAMES = (LINEAR, CROSS, OUT, FEED, POINT, CONV, DOWNSAMPLE, UPSAMPLE, TEXT, TEXT_FEED, TEXT_OUT)

Roles = dict[str, Tensor]


def models(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    torch.manual_seed(seed)
    unet, text_encoder = UNet2DConditionModel(**UNET_CONFIG), CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
    return unet.eval().to(dtype), text_encoder.eval().to(dtype)


def weight_of(unet: nn.Module, text_encoder: nn.Module, name: str) -> Tensor:
    component, _, path = name.partition(".")
    if component == "unet":
        return unet.get_submodule(path).weight
    return text_encoder.get_submodule(path if hasattr(text_encoder, "text_model") else path[11:]).weight


class Draw:
    """Random factors, small enough for a sum of several to stay near the base weight."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def __call__(self, *shape: int) -> Tensor:
        return (torch.randn(*shape, generator=self.generator) * 0.3).to(self.dtype)


def lora(draw: Draw, shape: tuple[int, ...], rank: int) -> Roles:
    return {"down": draw(rank, *shape[1:]), "up": draw(shape[0], rank, *(1 for _ in shape[2:]))}


def locon_mid(draw: Draw, shape: tuple[int, ...], rank: int) -> Roles:
    if len(shape) == 2:
        return lora(draw, shape, rank)
    core = {"mid": draw(rank, rank, *shape[2:])}
    return {"down": draw(rank, shape[1], 1, 1), "up": draw(shape[0], rank, 1, 1), **core}


def loha(draw: Draw, shape: tuple[int, ...], rank: int) -> Roles:
    columns = int(np.prod(shape[1:]))
    pairs = {f"hada_w{i}_a": draw(shape[0], rank) for i in (1, 2)}
    return {**pairs, **{f"hada_w{i}_b": draw(rank, columns) for i in (1, 2)}}


def loha_tucker(draw: Draw, shape: tuple[int, ...], rank: int) -> Roles:
    if len(shape) == 2:
        return loha(draw, shape, rank)
    pairs = {f"hada_w{i}_a": draw(rank, shape[0]) for i in (1, 2)}
    pairs |= {f"hada_w{i}_b": draw(rank, shape[1]) for i in (1, 2)}
    return {**pairs, **{f"hada_t{i}": draw(rank, rank, *shape[2:]) for i in (1, 2)}}


def _lokr(whole1: bool, whole2: bool, core: bool) -> Callable[[Draw, tuple[int, ...], int], Roles]:
    def make(draw: Draw, shape: tuple[int, ...], rank: int) -> Roles:
        a, b = 4, 2
        c, d, kernel = shape[0] // a, shape[1] // b, shape[2:]
        roles = {"lokr_w1": draw(a, b)} if whole1 else {"lokr_w1_a": draw(a, rank), "lokr_w1_b": draw(rank, b)}
        if whole2:
            return {**roles, "lokr_w2": draw(c, d, *kernel)}
        if core and kernel:
            return {
                **roles,
                "lokr_w2_a": draw(rank, c),
                "lokr_w2_b": draw(rank, d),
                "lokr_t2": draw(rank, rank, *kernel),
            }
        return {**roles, "lokr_w2_a": draw(c, rank), "lokr_w2_b": draw(rank, d * int(np.prod(kernel)))}

    return make


FAMILIES = {
    "LoRA": lora,
    "LoCon": locon_mid,
    "LoHa": loha,
    "LoHa, Tucker": loha_tucker,
    "LoKr, full": _lokr(True, True, False),
    "LoKr, second factored": _lokr(True, False, False),
    "LoKr, both factored": _lokr(False, False, False),
    "LoKr, Tucker": _lokr(True, False, True),
}


def oracle(roles: Mapping[str, Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """ΔW without its scale: the sums of the papers written out over their indices, in float64."""
    f = {role: tensor.double().numpy() for role, tensor in roles.items()}
    kernel = shape[2:]
    if "down" in f:
        up, down = f["up"].reshape(shape[0], -1), f["down"]
        if "mid" in f:
            return np.einsum("or,rsyx,si->oiyx", up, f["mid"], down[:, :, 0, 0], optimize=True)
        return np.stack([sum(up[o, r] * down[r] for r in range(up.shape[1])) for o in range(shape[0])]).reshape(shape)
    if "hada_w1_a" in f:
        halves = []
        for i in (1, 2):
            a, b = f[f"hada_w{i}_a"], f[f"hada_w{i}_b"]
            if f"hada_t{i}" in f:
                halves.append(np.einsum("ro,rsyx,si->oiyx", a, f[f"hada_t{i}"], b, optimize=True))
            else:
                halves.append(np.einsum("or,rc->oc", a, b).reshape(shape))
        return halves[0] * halves[1]
    w1 = f["lokr_w1"] if "lokr_w1" in f else np.einsum("ar,rb->ab", f["lokr_w1_a"], f["lokr_w1_b"])
    c, d = shape[0] // w1.shape[0], shape[1] // w1.shape[1]
    if "lokr_w2" in f:
        w2 = f["lokr_w2"]
    elif "lokr_t2" in f:
        w2 = np.einsum("rc,rsyx,sd->cdyx", f["lokr_w2_a"], f["lokr_t2"], f["lokr_w2_b"], optimize=True)
    else:
        w2 = np.einsum("cr,rn->cn", f["lokr_w2_a"], f["lokr_w2_b"]).reshape(c, d, *kernel)
    return np.einsum("ab,cd...->acbd...", w1, w2).reshape(shape)


KOHYA_LEAVES = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}


def kohya_key(name: str, role: str) -> str:
    component, _, path = name.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component]
    return f"{prefix}{path.replace('.', '_')}.{KOHYA_LEAVES.get(role, role)}"


def peft_key(name: str, role: str) -> str:
    leaves = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
    return f"{name}.{leaves.get(role, role)}"


def write(
    files: Mapping[str, Mapping[str, Tensor]], key: Callable[[str, str], str], metadata: Mapping | None = None
) -> bytes:
    """A safetensors file of the roles of each target."""
    tensors = {key(name, role): tensor.contiguous() for name, roles in files.items() for role, tensor in roles.items()}
    return save(tensors, {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None)


def simple_lora(seed: int, names: Iterable[str] = NAMES, rank: int = 2, scale: float = 1.0) -> dict[str, Tensor]:
    """A LoRA for the tiny models as a dict in diffusers' format."""
    draw, (unet, text_encoder) = Draw(seed), models()
    return {
        peft_key(name, role): tensor * (scale if role == "up" else 1.0)
        for name in names
        for role, tensor in lora(draw, tuple(weight_of(unet, text_encoder, name).shape), rank).items()
    }


def relative(found: Tensor, expected: Tensor | np.ndarray) -> float:
    expected = torch.as_tensor(expected).double()
    return ((found.double() - expected).norm() / expected.norm()).item()
