"""What a caller's function sees and changes between two steps.

`callback_on_step_end(pipeline, step, timestep, tensors) -> dict` gets the tensors it asked for and gives back those it
changed, in the layout diffusers has: under guidance `prompt_embeds`, `mask` and `masked_image_latents` hold the
unconditional rows first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from worker.engine.denoise import twice
from worker.engine.errors import InvalidParameter
from worker.engine.guidance import is_guided
from worker.engine.request import Request

StepEnd = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]]

TENSOR_INPUTS = ["latents", "prompt_embeds", "negative_prompt_embeds", "mask", "masked_image_latents"]


class PipelineCallback:
    """A callback that says itself which tensors it wants (`tensor_inputs`)."""

    tensor_inputs: Sequence[str] = ()

    def __init__(self, cutoff_step_ratio: float | None = 1.0, cutoff_step_index: int | None = None):
        if (cutoff_step_ratio is None) == (cutoff_step_index is None):
            raise InvalidParameter("cutoff_step_ratio", "or `cutoff_step_index` has to be given, not both")
        if cutoff_step_ratio is not None and not (
            isinstance(cutoff_step_ratio, float) and 0.0 <= cutoff_step_ratio <= 1.0
        ):
            raise InvalidParameter("cutoff_step_ratio", f"has to be a float in [0.0, 1.0], not {cutoff_step_ratio!r}")
        self.cutoff_step_ratio, self.cutoff_step_index = cutoff_step_ratio, cutoff_step_index

    def is_cutoff(self, pipeline: Any, step: int) -> bool:
        if self.cutoff_step_index is not None:
            return step == self.cutoff_step_index
        return step == int(pipeline.num_timesteps * self.cutoff_step_ratio)

    def callback_fn(self, pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} has to define `callback_fn`")

    def __call__(self, pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return self.callback_fn(pipeline, step, timestep, tensors)


class MultiPipelineCallbacks:
    """Several callbacks, one after the other."""

    def __init__(self, callbacks: Sequence[PipelineCallback]):
        self.callbacks = list(callbacks)

    @property
    def tensor_inputs(self) -> list[str]:
        return [name for callback in self.callbacks for name in callback.tensor_inputs]

    def __call__(self, pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        for callback in self.callbacks:
            tensors = callback(pipeline, step, timestep, tensors)
        return tensors


class SDCFGCutoffCallback(PipelineCallback):
    """No guidance after the cut-off step: its unconditional rows are dropped."""

    tensor_inputs = ("prompt_embeds",)

    def callback_fn(self, pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if self.is_cutoff(pipeline, step) and pipeline.do_classifier_free_guidance:
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
            pipeline._guidance_scale = 0.0
        return tensors


class IPAdapterScaleCutoffCallback(PipelineCallback):
    """The IP-Adapters' scale is 0 after the cut-off step."""

    def callback_fn(self, pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if self.is_cutoff(pipeline, step):
            pipeline.set_ip_adapter_scale([0.0] * len(pipeline.unet.ip_adapters))
        return tensors


def wanted_tensors(callback: StepEnd | None, names: Sequence[str] | None) -> list[str]:
    """Raises InvalidParameter for a name that is no tensor of ours."""
    names = list(getattr(callback, "tensor_inputs", names) or ())
    unknown = [name for name in names if name not in TENSOR_INPUTS]
    if unknown:
        rule = f"has to be in {TENSOR_INPUTS}, but found {unknown}"
        raise InvalidParameter("callback_on_step_end_tensor_inputs", rule)
    return names


def view(request: Request, names: Sequence[str]) -> dict[str, torch.Tensor | None]:
    """The request's tensors as diffusers' loop holds them."""
    tensors = {name: getattr(request, name) for name in names}
    for name in {"mask", "masked_image_latents"} & tensors.keys():
        tensors[name] = None if tensors[name] is None else twice(request, tensors[name])
    if "prompt_embeds" in tensors and request.guided:
        tensors["prompt_embeds"] = torch.cat([request.negative_prompt_embeds, request.prompt_embeds])
    return tensors


def with_guidance(request: Request, scale: float, time_cond_proj_dim: int | None) -> Request:
    """`request` at another guidance scale; at 1 and below it makes no unconditional pass any more."""
    if request.guided and not is_guided(scale, time_cond_proj_dim):
        request = replace(request, negative_prompt_embeds=None, negative_ip_hidden_states=())
    return replace(request, guidance_scale=scale)


def changed(request: Request, returned: Mapping[str, Any] | None) -> Request:
    """`request` with what a callback gave back; as in diffusers `negative_prompt_embeds` alone changes nothing, since
    the loop reads them from `prompt_embeds`.

    Raises InvalidParameter when a tensor's shape is not the one that was shown.
    """
    if not isinstance(returned, Mapping):
        rule = f"has to return the dict of tensors, not {type(returned).__name__}"
        raise InvalidParameter("callback_on_step_end", rule)
    changes: dict[str, torch.Tensor] = {}
    for name in TENSOR_INPUTS:
        tensor, own = returned.get(name), getattr(request, name)
        if tensor is None or name == "negative_prompt_embeds":
            continue
        if name != "latents" and request.guided and len(tensor) == 2 * len(own):
            first, tensor = tensor.chunk(2)
            if name == "prompt_embeds":
                changes["negative_prompt_embeds"] = first
            elif not torch.equal(first, tensor):
                rule = f"has to return a `{name}` whose two halves are the same"
                raise InvalidParameter("callback_on_step_end", rule)
        if tensor.shape != own.shape:
            rule = f"has to return `{name}` of shape {tuple(own.shape)}, not {tuple(tensor.shape)}"
            raise InvalidParameter("callback_on_step_end", rule)
        changes[name] = tensor
    return replace(request, **changes)
