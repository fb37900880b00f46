"""Random-weight checkpoints small enough for a laptop's test run, saved by diffusers, and the two pipelines over each.

`folder(kind)` writes a checkpoint once a session; `oracle(kind)` and `ours(kind)` load it once each. Tests that change
a pipeline (adapters, schedulers, tokens) put it back, or load one of their own.
"""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from worker.engine import StableDiffusionInpaintPipeline

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
VAE = {
    "block_out_channels": (16, 16, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 64,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

# What each kind of checkpoint changes in the UNet's configuration.
KINDS = {
    "inpaint": {"in_channels": 9},
    "plain": {"in_channels": 4},
    "sd2": {"in_channels": 9, "attention_head_dim": (2, 4), "use_linear_projection": True, "layers_per_block": 2},
    "distilled": {"in_channels": 9, "time_cond_proj_dim": 16},
    "asymmetric": {"in_channels": 9},
}

_root = Path(tempfile.mkdtemp(prefix="tiny-checkpoints-"))
atexit.register(shutil.rmtree, _root, ignore_errors=True)


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer without merges: every letter is a token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def text_encoder() -> CLIPTextModel:
    marks = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    return CLIPTextModel(CLIPTextConfig(**TEXT, **marks, max_position_embeddings=77)).eval()


def vae(kind: str) -> torch.nn.Module:
    if kind == "asymmetric":
        levels = {"down_block_out_channels": (16, 16, 32, 32), "up_block_out_channels": (16, 16, 32, 32)}
        blocks = {key: VAE[key] for key in ("latent_channels", "norm_num_groups", "down_block_types", "up_block_types")}
        return diffusers.AsymmetricAutoencoderKL(
            **blocks, **levels, layers_per_down_block=1, layers_per_up_block=1, sample_size=64
        ).eval()
    return diffusers.AutoencoderKL(**VAE).eval()


@cache
def folder(kind: str) -> Path:
    path = _root / kind
    torch.manual_seed(sum(map(ord, kind)))
    pipe = diffusers.StableDiffusionInpaintPipeline(
        vae=vae(kind),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=diffusers.UNet2DConditionModel(**{**UNET, **KINDS[kind]}).eval(),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(path)
    return path


def load_oracle(kind: str) -> diffusers.StableDiffusionInpaintPipeline:
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(folder(kind))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_ours(kind: str) -> StableDiffusionInpaintPipeline:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder(kind))
    pipe.set_progress_bar_config(disable=True)
    return pipe


oracle = cache(load_oracle)
ours = cache(load_ours)


def lora(kind: str, rank: int = 4, seed: int = 0, scale: float = 0.3) -> dict[str, torch.Tensor]:
    """A LoRA in diffusers' format for every attention of UNet and text encoder, strong enough to be seen."""
    random, tensors = torch.Generator().manual_seed(seed), {}
    pipe = oracle(kind)
    for component, model, ends in (
        ("unet", pipe.unet, ("to_q", "to_k", "to_v", "to_out.0")),
        ("text_encoder.text_model", pipe.text_encoder, ("q_proj", "k_proj", "v_proj", "out_proj")),
    ):
        for name, module in model.named_modules():
            if name.endswith(ends) and "attn" in name:
                down = torch.randn(rank, module.in_features, generator=random) * scale
                up = torch.randn(module.out_features, rank, generator=random) * scale
                tensors[f"{component}.{name}.lora_A.weight"] = down
                tensors[f"{component}.{name}.lora_B.weight"] = up
    return tensors
