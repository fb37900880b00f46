"""The step: one UNet forward for all rows of one shape, then each request by its own scheduler.

Requests at different timesteps, with different schedulers, guidance scales and seeds, share the forward; a request
without guidance adds no unconditional row to it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from worker.engine.conditions import ImageKeysValues, KeysValues, TimeStates
from worker.engine.errors import InvalidParameter
from worker.engine.guidance import classifier_free_guidance
from worker.engine.request import Request

UNet = Callable[..., torch.Tensor]
Conditions = tuple[TimeStates, KeysValues, Sequence[ImageKeysValues]]
Key = tuple[Any, ...]
Rows = Callable[[slice], AbstractContextManager[Any]]


def all_alike(part: slice) -> AbstractContextManager[Any]:
    return nullcontext()


def group_key(request: Request) -> Key:
    """Requests of one key can share a forward: the shapes and dtypes of a row are the same.

    One with masks for its image prompts keeps to itself, since the UNet takes one set of them a forward.
    """
    rows = (request.latents, request.prompt_embeds, request.timestep_cond, *request.ip_hidden_states)
    alike = tuple(None if row is None else (row.shape[1:], row.dtype, row.device) for row in rows)
    return (*alike, id(request) if request.ip_adapter_masks else None)


def twice(request: Request, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` ``[N, …]``, under guidance ``[2N, …]``: the unconditional rows first."""
    return torch.cat([tensor, tensor]) if request.guided else tensor


def model_input(request: Request, in_channels: int) -> torch.Tensor:
    """``[N or 2N, in_channels, h, w]``: latents; for an inpainting UNet, mask and masked-image latents behind them."""
    sample = request.scheduler.model_input(request.state, request.latents)
    if in_channels != sample.shape[1]:
        sample = torch.cat([sample, request.mask, request.masked_image_latents], dim=1)
    return twice(request, sample)


def halves(request: Request, positive: torch.Tensor, negative: torch.Tensor | None) -> torch.Tensor:
    return torch.cat([negative, positive]) if request.guided else positive


def image_tokens(request: Request) -> list[torch.Tensor]:
    """For each IP-Adapter its tokens ``[N or 2N, pictures, tokens, D]``; none without image prompts."""
    negative = request.negative_ip_hidden_states
    return [
        halves(request, tokens, negative[i] if negative else None) for i, tokens in enumerate(request.ip_hidden_states)
    ]


def parts(rows: int, most_rows: int | None) -> Iterator[slice]:
    """The forwards that a batch is made in, each of at most `most_rows` rows (None: all)."""
    step = most_rows or rows
    return (slice(begin, begin + step) for begin in range(0, rows, step))


def predict(
    unet: UNet,
    requests: Sequence[Request],
    in_channels: int,
    most_rows: int | None = None,
    rows: Rows = all_alike,
    conditions: Conditions | None = None,
) -> list[torch.Tensor]:
    """The model's guided output ``[N, C, h, w]`` for each of `requests`, all of one `group_key`.

    A forward takes at most `most_rows` rows (None: all). `rows` is entered around each forward with the slice of the
    batch that it makes. `conditions`: what times, texts and, for each IP-Adapter, pictures come to, a row for each of
    the batch, where it is known.
    """
    samples = [model_input(request, in_channels) for request in requests]
    sample = torch.cat(samples)
    timestep, texts, images, condition = (*conditions, None) if conditions else _conditions(requests, samples)
    made = []
    for part in parts(len(sample), most_rows):
        with rows(part):
            made.append(
                unet(
                    sample[part],
                    _rows(timestep, part),
                    encoder_hidden_states=_rows(texts, part),
                    timestep_cond=None if condition is None else condition[part],
                    ip_hidden_states=[_rows(image, part) for image in images] or None,
                    ip_adapter_masks=requests[0].ip_adapter_masks or None,
                )
            )
    output = torch.cat(made) if len(made) > 1 else made[0]
    shares = output.split([len(sample) for sample in samples])
    return [_guided(request, share) for request, share in zip(requests, shares, strict=True)]


def _conditions(
    requests: Sequence[Request], samples: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], torch.Tensor | None]:
    """Times ``[B]``, texts ``[B, L, D]``, for each IP-Adapter the tokens of pictures ``[B, pictures, tokens, D]``, and
    the guidance embedding of distilled UNets ``[B, …]``, as they are.
    """
    times = [r.scheduler.timestep(r.state).expand(len(s)) for r, s in zip(requests, samples, strict=True)]
    timestep = torch.cat([time.float() for time in times]) if len(times) > 1 else times[0]
    texts = torch.cat([halves(r, r.prompt_embeds, r.negative_prompt_embeds) for r in requests])
    images = [torch.cat(tokens) for tokens in zip(*map(image_tokens, requests), strict=True)]
    if requests[0].timestep_cond is None:
        return timestep, texts, images, None
    return timestep, texts, images, torch.cat([twice(request, request.timestep_cond) for request in requests])


def _rows(batch: torch.Tensor | TimeStates | KeysValues | ImageKeysValues, part: slice) -> Any:
    return batch[part] if isinstance(batch, torch.Tensor) else batch.rows(part)


def _guided(request: Request, output: torch.Tensor) -> torch.Tensor:
    if not request.guided:
        return output
    unconditional, conditional = output.chunk(2)
    return classifier_free_guidance(unconditional, conditional, request.guidance_scale)


def advance(request: Request, output: torch.Tensor) -> Request:
    """One scheduler step; for a plain UNet the region the mask keeps is put back, at the noise level that is next."""
    scheduler = request.scheduler
    state, latents, _ = scheduler.step(
        request.state, output, request.latents, generator=request.generator, eta=request.eta
    )
    if request.image_latents is not None:
        kept = request.image_latents
        if not scheduler.done(state):
            kept = scheduler.add_noise(state, kept, request.noise, scheduler.timestep(state))
        latents = (1 - request.mask) * kept + request.mask * latents
    return replace(request, state=state, latents=latents)


@torch.no_grad()
def denoise_step(unet: UNet, requests: Sequence[Request]) -> list[Request]:
    """Every request one step further, in the order given.

    `unet` has `.config.in_channels` and the call ``unet(sample [B, in_channels, h, w], timestep, *,
    encoder_hidden_states [B, L, D], timestep_cond, ip_hidden_states) -> [B, C, h, w]``.
    Raises InvalidParameter for a request that is done.
    """
    groups: dict[Key, list[int]] = {}
    for i, request in enumerate(requests):
        if request.done:
            raise InvalidParameter("requests", f"holds one, number {i}, that has no step left: finish it")
        groups.setdefault(group_key(request), []).append(i)
    stepped: dict[int, Request] = {}
    for indices in groups.values():
        outputs = predict(unet, [requests[i] for i in indices], unet.config.in_channels)
        for i, output in zip(indices, outputs, strict=True):
            stepped[i] = advance(requests[i], output)
    return [stepped[i] for i in range(len(requests))]
