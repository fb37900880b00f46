"""The UNet as `torch.compile` makes it: a graph for each shape of a batch, all made before the first job.

What is compiled is a twin that has the UNet's weights in the UNet's own memory. A LoRA that is merged is written there
in place, so that a swap compiles nothing anew and a CUDA graph stays valid; and whatever hangs on the UNet's layers
(LoRAs of single rows, packed weights, counters) is no part of the graph. What needs it is made by the UNet itself.
"""

from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from worker.engine.conditions import KeysValues, TimeStates
from worker.engine.errors import FeatureUnavailable, InvalidParameter
from worker.engine.faults import fault_of, first_line
from worker.engine.unet import UNet2DConditionModel

CompileMode: TypeAlias = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
"""torch.compile's; those without "no-cudagraphs" or "default" in their names record CUDA graphs where there is CUDA."""

_MOST_GRAPHS = 128


class CompiledUNet(nn.Module):
    """Called as the UNet is, with what times and texts come to made before; in evaluation mode, without gradients.

    A batch of a shape that was prepared goes through its graph; any other, and one with image prompts, through the UNet
    as it is. The UNet is not to be moved, cast or given other weights meanwhile.
    """

    def __init__(self, unet: UNet2DConditionModel, mode: CompileMode = "default", backend: str = "inductor"):
        """`mode`: torch.compile's. Raises InvalidParameter for one that it does not have."""
        if mode not in get_args(CompileMode):
            raise InvalidParameter("mode", f"must be one of {', '.join(get_args(CompileMode))}, not {mode!r}")
        super().__init__()
        self._unet = (unet,)  # in a tuple, so that its weights are not this module's as well
        twin = type(unet).from_weights(unet.config, unet.state_dict(), None).requires_grad_(False)
        options = {"mode": mode} if backend == "inductor" else {}
        graph = torch.compile(_Forward(twin), backend=backend, dynamic=False, fullgraph=True, **options)
        self._graph, self._keeps_output = (graph,), mode in ("default", "max-autotune-no-cudagraphs")
        self._prepared: set[tuple[object, ...]] = set()

    @torch.no_grad()
    def prepare(self, latent_size: tuple[int, int], tokens: int, rows: int) -> None:
        """Make the graph for `rows` rows of latents of (height, width) and texts of so many tokens.

        Takes a minute and more. Raises FeatureUnavailable where this machine cannot compile.
        """
        unet = self._unet[0]
        where = {"device": unet.device, "dtype": unet.dtype}
        sample = torch.zeros(rows, unet.config.in_channels, *latent_size, **where)
        widths = unet.config.cross_attention_dim
        text = torch.zeros(rows, tokens, widths[0] if isinstance(widths, tuple) else widths, **where)
        given = sample, unet.time_states(torch.zeros(rows, device=unet.device)), unet.text_keys_values(text)
        try:
            with torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS):
                for _ in range(3):  # a CUDA graph is recorded at the second call
                    self._graph[0](given[0], given[1].values, given[2].values, _plan(*given[1:]))
        except Exception as error:
            if fault_of(error) is not None:
                raise
            raise FeatureUnavailable(
                f"the UNet cannot be compiled here ({first_line(error)[:200]}): install a C++ compiler (g++), and on a "
                "GPU Triton, or go without compiling"
            ) from error
        self._prepared.add(_key(*given))

    def forward(
        self, sample: Tensor, timestep: TimeStates | Any, encoder_hidden_states: KeysValues | Any, **others: Any
    ) -> Tensor:
        ready = isinstance(timestep, TimeStates) and isinstance(encoder_hidden_states, KeysValues)
        plain = ready and all(other is None for other in others.values())
        if not plain or _key(sample, timestep, encoder_hidden_states) not in self._prepared:
            return self._unet[0](sample, timestep, encoder_hidden_states, **others)
        with torch.compiler.set_stance("eager_on_recompile"):
            plan = _plan(timestep, encoder_hidden_states)
            output = self._graph[0](sample, timestep.values, encoder_hidden_states.values, plan)
        return output if self._keeps_output else output.clone()  # a CUDA graph writes into the same memory each time


class _Forward(nn.Module):
    """Tensors and numbers in, a tensor out: what a graph can have."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, times: Tensor, texts: Tensor, plan: tuple[Any, ...]) -> Tensor:
        widths, text_widths, length = plan
        return self.unet(sample, TimeStates(times, widths), KeysValues(texts, text_widths, length))


def _plan(times: TimeStates, texts: KeysValues) -> tuple[Any, ...]:
    return times.widths, texts.widths, texts.length


def _key(sample: Tensor, times: TimeStates, texts: KeysValues) -> tuple[object, ...]:
    return sample.shape, sample.dtype, times.values.shape, texts.values.shape, _plan(times, texts)
