"""What a call may ask for: every misuse is an InvalidParameter that carries the argument's name and the rule.

`check` runs before anything is computed; what can only be seen later (a picture's shape after it is read, a mask's
number of rows) is checked where it is seen.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from worker.engine.call import Call
from worker.engine.errors import InvalidParameter
from worker.engine.image_processor import OUTPUT_TYPES


@dataclass(frozen=True)
class Limits:
    """What the loaded models allow.

    `text_layers`: hidden layers of the text encoder, None without one. `ip_adapters`: how many are loaded.
    `guided`: whether the call makes an unconditional pass.
    """

    vae_scale_factor: int
    latent_channels: int
    cross_attention_dim: int
    text_layers: int | None
    ip_adapters: int
    guided: bool


def require(holds: bool, field: str, rule: str) -> None:
    if not holds:
        raise InvalidParameter(field, rule)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_text(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) for text in texts)


def check_numbers(call: Call, limits: Limits) -> None:
    require(
        is_finite(call.strength) and 0 <= call.strength <= 1,
        "strength",
        f"should be in [0.0, 1.0], not {call.strength!r}",
    )
    factor = limits.vae_scale_factor
    for side, pixels in (("height", call.height), ("width", call.width)):
        fits = is_int(pixels) and pixels > 0 and pixels % factor == 0
        require(fits, side, f"has to be a positive multiple of {factor}, not {pixels!r}")
    require(call.timesteps is None or call.sigmas is None, "timesteps", "and `sigmas` exclude each other: pass one")
    if call.timesteps is None and call.sigmas is None:
        steps = call.num_inference_steps
        require(is_int(steps) and steps >= 1, "num_inference_steps", f"has to be at least 1, not {steps!r}")
    scale = call.guidance_scale
    require(is_finite(scale), "guidance_scale", f"has to be a finite number, not {scale!r}")
    count = call.num_images_per_prompt
    require(is_int(count) and count >= 1, "num_images_per_prompt", f"has to be at least 1, not {count!r}")
    require(is_finite(call.eta) and call.eta >= 0, "eta", f"has to be a number of at least 0, not {call.eta!r}")
    allowed = f"must be one of {', '.join(OUTPUT_TYPES)}, not {call.output_type!r}"
    require(call.output_type in OUTPUT_TYPES, "output_type", allowed)


def check_embeds(embeds: torch.Tensor | None, field: str, width: int) -> None:
    fits = embeds is None or (isinstance(embeds, torch.Tensor) and embeds.ndim == 3 and embeds.shape[2] == width)
    require(fits, field, f"has to be a tensor of shape (batch, tokens, {width})")


def check_text(call: Call, limits: Limits) -> None:
    prompt, embeds = call.prompt, call.prompt_embeds
    require(prompt is None or embeds is None, "prompt", "and `prompt_embeds` exclude each other: pass one")
    require(prompt is not None or embeds is not None, "prompt", "or `prompt_embeds` has to be given")
    check_embeds(embeds, "prompt_embeds", limits.cross_attention_dim)
    if prompt is not None:
        require(is_text(prompt), "prompt", f"has to be a string or a list of strings, not {prompt!r}")
        has_encoder = limits.text_layers is not None
        require(has_encoder, "prompt", "needs a text encoder and this pipeline has none: pass `prompt_embeds`")
    if call.clip_skip is not None:
        layers = limits.text_layers or 0
        fits = is_int(call.clip_skip) and 0 <= call.clip_skip <= layers
        require(
            fits, "clip_skip", f"has to be between 0 and the text encoder's {layers} layers, not {call.clip_skip!r}"
        )


def check_negative(call: Call, limits: Limits) -> None:
    negative, embeds = call.negative_prompt, call.negative_prompt_embeds
    exclusive = "and `negative_prompt_embeds` exclude each other: pass one"
    require(negative is None or embeds is None, "negative_prompt", exclusive)
    check_embeds(embeds, "negative_prompt_embeds", limits.cross_attention_dim)
    if embeds is not None and call.prompt_embeds is not None:
        shape = call.prompt_embeds.shape
        require(embeds.shape == shape, "negative_prompt_embeds", f"must have `prompt_embeds`' shape, {tuple(shape)}")
    if not limits.guided:
        return  # nothing below is read
    if embeds is not None:
        fits = len(embeds) == call.batch_size
        require(fits, "negative_prompt_embeds", f"must hold one row for each of the {call.batch_size} prompts")
    if negative is not None:
        require(is_text(negative), "negative_prompt", f"has to be a string or a list of strings, not {negative!r}")
        same_type = call.prompt is None or type(negative) is type(call.prompt)
        require(same_type, "negative_prompt", "has to be of the type of `prompt`: both a string or both a list")
        count = 1 if isinstance(negative, str) else len(negative)
        rule = f"has to hold one text for each of the {call.batch_size} prompts, not {count}"
        require(count == call.batch_size, "negative_prompt", rule)


def check_cross_attention(call: Call) -> None:
    kwargs = call.cross_attention_kwargs
    if kwargs is None:
        return
    require(isinstance(kwargs, dict), "cross_attention_kwargs", f"has to be a dict, not {type(kwargs).__name__}")
    unknown = sorted(map(str, kwargs.keys() - {"scale", "ip_adapter_masks"}))
    rule = f"takes `scale` (of the LoRAs) and `ip_adapter_masks`, not {', '.join(unknown)}"
    require(not unknown, "cross_attention_kwargs", rule)
    fits = kwargs.get("scale") is None or is_finite(kwargs["scale"])
    require(fits, "cross_attention_kwargs", "has to hold a finite number as `scale`")
    masks = kwargs.get("ip_adapter_masks")
    if masks is not None:
        fits = isinstance(masks, list | tuple) and all(isinstance(m, torch.Tensor) and m.ndim == 4 for m in masks)
        rule = "has to hold as `ip_adapter_masks` a list of tensors (1, pictures, height, width)"
        require(fits, "cross_attention_kwargs", rule)


def check_pictures(call: Call) -> None:
    require(call.image is not None, "image", "has to be given: the picture to change")
    require(call.mask_image is not None, "mask_image", "has to be given: white where the picture is to change")
    masked = call.masked_image_latents
    fits = masked is None or (isinstance(masked, torch.Tensor) and masked.ndim == 4)
    require(fits, "masked_image_latents", "has to be a tensor of four dimensions")
    pad = call.padding_mask_crop
    if pad is None:
        return
    require(is_int(pad) and pad >= 0, "padding_mask_crop", f"has to be a number of pixels of at least 0, not {pad!r}")
    for field in ("image", "mask_image"):
        picture = getattr(call, field)
        rule = f"has to be one PIL image when `padding_mask_crop` is given, not {type(picture).__name__}"
        require(isinstance(picture, Image.Image), field, rule)
    sizes = f"{call.mask_image.size} has to be the size of `image`, {call.image.size}, when it is to be cropped"
    require(call.mask_image.size == call.image.size, "mask_image", sizes)
    rule = f"has to be 'pil' when `padding_mask_crop` is given, not {call.output_type!r}"
    require(call.output_type == "pil", "output_type", rule)


def check_noise(call: Call, limits: Limits) -> None:
    generators = call.generator if isinstance(call.generator, list) else [call.generator]
    typed = call.generator is None or all(isinstance(one, torch.Generator) for one in generators)
    require(typed, "generator", "has to be a torch.Generator or a list of them")
    if isinstance(call.generator, list):
        rule = f"has to hold one generator for each of the {call.rows} images, not {len(generators)}"
        require(len(generators) == call.rows, "generator", rule)
    if call.latents is not None:
        factor = limits.vae_scale_factor
        shape = (call.rows, limits.latent_channels, call.height // factor, call.width // factor)
        fits = isinstance(call.latents, torch.Tensor) and tuple(call.latents.shape) == shape
        require(fits, "latents", f"has to be a tensor of shape {shape}")


def check_ip_adapter(call: Call, limits: Limits) -> None:
    images, embeds, count = call.ip_adapter_image, call.ip_adapter_image_embeds, limits.ip_adapters
    exclusive = "and `ip_adapter_image_embeds` exclude each other: pass one"
    require(images is None or embeds is None, "ip_adapter_image", exclusive)
    if embeds is not None:
        fits = isinstance(embeds, list) and all(isinstance(e, torch.Tensor) and e.ndim in (3, 4) for e in embeds)
        require(fits, "ip_adapter_image_embeds", "has to be a list of tensors of three or four dimensions")
        halved = not limits.guided or all(len(e) % 2 == 0 for e in embeds)
        require(halved, "ip_adapter_image_embeds", "has to hold a negative half first under guidance")
    field = "ip_adapter_image" if embeds is None else "ip_adapter_image_embeds"
    require(count > 0 or not call.uses_ip_adapter, field, "needs an IP-Adapter: call `load_ip_adapter` first")
    rule = "or `ip_adapter_image_embeds` has to be given while an IP-Adapter is loaded"
    require(count == 0 or call.uses_ip_adapter, field, rule)
    if call.uses_ip_adapter:
        given = len(images) if isinstance(images, list) else 1 if embeds is None else len(embeds)
        require(given == count, field, f"has to hold one entry for each of the {count} IP-Adapters, not {given}")


def check(call: Call, limits: Limits) -> None:
    """Raise InvalidParameter for the first rule that `call` (already sized) breaks."""
    check_numbers(call, limits)
    check_text(call, limits)
    check_negative(call, limits)
    check_cross_attention(call)
    check_pictures(call)
    check_noise(call, limits)
    check_ip_adapter(call, limits)
