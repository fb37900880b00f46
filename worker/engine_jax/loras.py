"""LoRAs in parameters: the engine's own sums, carried over to the arrays that they change."""

from collections.abc import Iterable

import jax

from worker.engine.lora import Adapter
from worker.engine.lora.sets import terms_of
from worker.engine.lora.targets import named_targets
from worker.engine.pipeline import StableDiffusionInpaintPipeline
from worker.engine_jax.bridge import Params, to_array


class LoraParams:
    """Merges into the parameters of one pipeline; its torch modules hold the sums for a moment.

    Not for two threads at once.
    """

    def __init__(self, host: StableDiffusionInpaintPipeline):
        self.merger = host.lora.merger
        paths = {module: path for model in (host.unet, host.text_encoder) for path, module in model.named_modules()}
        self._targets = {
            name: (name.partition(".")[0], f"{paths[module]}.weight", module)
            for name, module in named_targets(host.unet, host.text_encoder)
        }

    def merged(self, params: dict[str, Params], adapters: Iterable[Adapter]) -> dict[str, Params]:
        """`params`, which are the base's, with W₀ + Σ s·ΔW for what `adapters` act on: new arrays in the same places,
        so that nothing is compiled anew. `params` themselves stay as they are.

        Raises InvalidParameter, LoraIncompatible, LoraNonFinite.
        """
        adapters = tuple(adapters)
        self.merger.set_adapters(adapters, check_finite=True)
        try:
            result = {component: dict(arrays) for component, arrays in params.items()}
            for name in terms_of(adapters, self.merger.table):
                component, weight, module = self._targets[name]
                sharding = params[component][weight].sharding
                result[component][weight] = jax.device_put(to_array(module.weight), sharding)
        finally:
            self.merger.restore()
        return result
