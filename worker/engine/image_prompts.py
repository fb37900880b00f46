"""Pictures as prompts, from the picture to the tokens that cross-attention reads (IP-Adapter, arXiv:2308.06721)."""

from typing import Any

import torch

from worker.engine.call import Call
from worker.engine.errors import InvalidParameter
from worker.engine.latents import repeat_rows

Tokens = tuple[torch.Tensor, ...]


def encode_image(
    image_encoder: Any, feature_extractor: Any, image: Any, hidden_states: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what CLIP sees in the pictures, what stands for no picture), ``[pictures, …]`` each.

    `hidden_states`: the last layer's input ``[pictures, S, E]`` and that of a black picture, as the "plus" adapters
    want; else the image embedding ``[pictures, E]`` and zeros. A tensor ``[pictures, 3, S, S]`` is taken as prepared.
    """
    if image_encoder is None:
        rule = "needs an image encoder, and there is none: load one, or pass `ip_adapter_image_embeds`"
        raise InvalidParameter("ip_adapter_image", rule)
    if not isinstance(image, torch.Tensor):
        if feature_extractor is None:
            raise InvalidParameter("ip_adapter_image", "needs a feature extractor, and this pipeline has none")
        image = feature_extractor(image, return_tensors="pt").pixel_values
    pixels = image.to(image_encoder.device, image_encoder.dtype)
    if not hidden_states:
        embeds = image_encoder(pixels).image_embeds
        return embeds, torch.zeros_like(embeds)
    seen, nothing = (
        image_encoder(some, output_hidden_states=True).hidden_states[-2] for some in (pixels, torch.zeros_like(pixels))
    )
    return seen, nothing


def prompt_tokens(
    call: Call, unet: Any, image_encoder: Any, feature_extractor: Any, guided: bool
) -> tuple[Tokens, Tokens]:
    """(positive, negative): for each IP-Adapter ``[N, pictures, tokens, D]``; negative is empty without guidance."""
    if not call.uses_ip_adapter:
        return (), ()
    positive, negative = [], []
    if call.ip_adapter_image_embeds is not None:
        for embeds in call.ip_adapter_image_embeds:
            halves = embeds.chunk(2) if guided else (embeds[:0], embeds)
            negative.append(halves[0])
            positive.append(halves[1])
    else:
        images = call.ip_adapter_image if isinstance(call.ip_adapter_image, list) else [call.ip_adapter_image]
        for image, adapter in zip(images, unet.ip_adapters, strict=True):
            seen, nothing = encode_image(image_encoder, feature_extractor, image, adapter.uses_hidden_states)
            positive.append(seen[None])
            negative.append(nothing[None])
    return _project(unet, positive, call.rows), _project(unet, negative, call.rows) if guided else ()


def _project(unet: Any, embeds: list[torch.Tensor], rows: int) -> Tokens:
    projected = unet.project_image_embeds([one.to(unet.device) for one in embeds])
    return tuple(repeat_rows(tokens, rows, "ip_adapter_image_embeds") for tokens in projected)
