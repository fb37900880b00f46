"""diffusers' methods for LoRAs, over one merger: what `StableDiffusionInpaintPipeline` delegates to.

A loaded adapter is active, and the only active one, in each component it has weights for; `set_adapters` chooses
several. Fused adapters are those whose strength is frozen: while a component has any, they alone act on it, until
`unfuse_lora`; unloading leaves them in the weights for good. All of it is one state that is first merged, then adopted,
so a method that raises has changed neither the state nor the weights.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from worker.engine.errors import InvalidParameter, UnsafeWeightsFormat
from worker.engine.lora.merge import LoraMerger
from worker.engine.lora.save import save_lora_weights
from worker.engine.lora.sets import Adapter
from worker.engine.lora.strengths import Strength, strengths
from worker.engine.lora.targets import COMPONENTS
from worker.engine.lora.weights import LoraWeights, read_lora

# Where to download from, and how to hold memory while loading: without effect on a local file, in diffusers as here.
_WITHOUT_EFFECT = {
    *("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "low_cpu_mem_usage"),
}

ByComponent = Mapping[str, Mapping[str, Strength]]


def _none_yet() -> ByComponent:
    return {component: {} for component in COMPONENTS}


@dataclass(frozen=True)
class _State:
    """`strength` of every loaded adapter by component and name, in the order of loading; `active` are names of it."""

    loaded: Mapping[str, LoraWeights] = field(default_factory=dict)
    strength: ByComponent = field(default_factory=_none_yet)
    active: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(COMPONENTS, ()))
    fused: ByComponent = field(default_factory=_none_yet)
    kept: tuple[Adapter, ...] = ()
    enabled: bool = True

    def acting(self, component: str, scale: float) -> Mapping[str, Strength]:
        if not self.enabled:
            return {}
        if self.fused[component]:
            return self.fused[component]
        return {name: self.strength[component][name] * scale for name in self.active[component]}

    def adapters(self, scale: float) -> tuple[Adapter, ...]:
        unet, text_encoder = (self.acting(component, scale) for component in COMPONENTS)
        chosen = (Adapter(lora, unet.get(n), text_encoder.get(n)) for n, lora in self.loaded.items())
        return (*self.kept, *chosen)

    def fused_for_good(self, names: Iterable[str]) -> tuple[Adapter, ...]:
        """What stays in the weights when these adapters go."""
        unet, text_encoder = (self.fused[component] for component in COMPONENTS)
        going = [name for name in names if name in unet or name in text_encoder]
        return tuple(Adapter(self.loaded[n], unet.get(n), text_encoder.get(n)) for n in going)


class LoraAdapters:
    """The named adapters of one pipeline. Signatures and semantics are diffusers' 0.42, errors this engine's."""

    save_lora_weights = staticmethod(save_lora_weights)

    def __init__(self, unet: nn.Module | None, text_encoder: nn.Module | None = None):
        self.merger = LoraMerger(unet, text_encoder)
        self._state = _State()

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        use_safetensors: bool | None = None,
        **hub: Any,
    ) -> None:
        """Load a LoRA from a local file or folder, or from a dict of tensors, and make it active.

        `adapter_name` defaults to `default_<number>`; one that is taken is refused, but with `hotswap`, which replaces
        that adapter and keeps its strength. Raises what `read_lora` raises, and `InvalidParameter`.
        """
        if hub.keys() - _WITHOUT_EFFECT:
            raise InvalidParameter(min(hub.keys() - _WITHOUT_EFFECT), "is no argument of load_lora_weights")
        if use_safetensors is False:
            raise UnsafeWeightsFormat("LoRAs are read from safetensors only: leave `use_safetensors` out")
        state = self._state
        name = adapter_name if adapter_name is not None else self._free_name()
        if name in state.loaded and not hotswap:
            raise InvalidParameter("adapter_name", f"{name!r} is in use: choose another, or delete that adapter first")
        if hotswap and name not in state.loaded:
            raise InvalidParameter("hotswap", f"replaces a loaded adapter, and there is none called {name!r}")
        source = pretrained_model_name_or_path_or_dict
        lora = read_lora(source, self.merger.table, weight_name=weight_name, subfolder=subfolder)
        strength, active = dict(state.strength), dict(state.active)
        for component in COMPONENTS:
            if component in lora.components:
                strength[component] = {**strength[component], name: strength[component].get(name, 1.0)}
                active[component] = active[component] if hotswap else (name,)
            elif hotswap:
                strength[component] = {n: s for n, s in strength[component].items() if n != name}
                active[component] = tuple(n for n in active[component] if n != name)
        self._become(replace(state, loaded={**state.loaded, name: lora}, strength=strength, active=active))

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Make exactly these adapters active, at these weights: one for all or a list, see `strengths`."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._require(names)
        weights = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise InvalidParameter("adapter_weights", f"has {len(weights)} entries for {len(names)} adapters")
        given = {n: strengths(w, self.merger.table) for n, w in zip(names, weights, strict=True)}
        state = self._state
        self._become(
            replace(
                state,
                strength={c: {n: given.get(n, {c: s})[c] for n, s in state.strength[c].items()} for c in COMPONENTS},
                active={c: tuple(n for n in given if n in state.strength[c]) for c in COMPONENTS},
            )
        )

    def get_active_adapters(self) -> list[str]:
        """The active adapters of the text encoder, if any has weights for it, else the UNet's (diffusers' rule)."""
        state = self._state
        return list(state.active[next((c for c in reversed(COMPONENTS) if state.strength[c]), "unet")])

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The loaded adapters of each component that has any."""
        return {component: list(names) for component, names in self._state.strength.items() if names}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget these adapters. Where no active one is left, the first loaded one becomes active (PEFT's rule)."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._require(names)
        state = self._state
        strength = {c: {n: s for n, s in state.strength[c].items() if n not in names} for c in COMPONENTS}
        active = {}
        for component in COMPONENTS:
            left = tuple(n for n in state.active[component] if n not in names)
            active[component] = left or (tuple(strength[component])[:1] if state.active[component] else ())
        self._become(
            replace(
                state,
                loaded={n: lora for n, lora in state.loaded.items() if n not in names},
                strength=strength,
                active=active,
                fused={c: {n: s for n, s in state.fused[c].items() if n not in names} for c in COMPONENTS},
                kept=(*state.kept, *state.fused_for_good(names)),
            )
        )

    def disable_lora(self) -> None:
        """Let no adapter act, until `enable_lora`."""
        self._become(replace(self._state, enabled=False))

    def enable_lora(self) -> None:
        self._become(replace(self._state, enabled=True))

    def unload_lora_weights(self) -> None:
        """Forget all adapters. Those that are fused stay in the weights."""
        self._become(_State(kept=(*self._state.kept, *self._state.fused_for_good(self._state.loaded))))

    @property
    def num_fused_loras(self) -> int:
        return len(self.fused_loras)

    @property
    def fused_loras(self) -> set[str]:
        """Names of the fused adapters."""
        return {name for fused in self._state.fused.values() for name in fused}

    def fuse_lora(
        self,
        components: Sequence[str] = COMPONENTS,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Freeze adapters (default: the active ones) at their present strength times `lora_scale`.

        `safe_fusing` refuses (`LoraNonFinite`) a sum that is not finite. Unlike in diffusers, `unfuse_lora` also takes
        `lora_scale` back.
        """
        self._require_components(components)
        self._require(adapter_names or ())
        state = self._state
        fused = dict(state.fused)
        for component in components:
            names = state.active[component] if adapter_names is None else adapter_names
            new = {n: state.strength[component][n] * lora_scale for n in names if n in state.strength[component]}
            fused[component] = {**new, **fused[component]}
        self._become(replace(state, fused=fused), check_finite=safe_fusing)

    def unfuse_lora(self, components: Sequence[str] = COMPONENTS) -> None:
        """Take the fused adapters out, to the last bit; the active ones act again."""
        self._require_components(components)
        fused = {c: {} if c in components else self._state.fused[c] for c in COMPONENTS}
        self._become(replace(self._state, fused=fused))

    @contextmanager
    def scaled(self, scale: float | None) -> Iterator[None]:
        """Within, every adapter that is not fused acts `scale` times as strongly: `cross_attention_kwargs["scale"]`."""
        self.merger.set_adapters(self._state.adapters(1.0 if scale is None else scale))
        try:
            yield
        finally:
            self.merger.set_adapters(self._state.adapters(1.0))

    def detached(self) -> AbstractContextManager[None]:
        """Within, the models hold their base weights and may be moved or cast; see `LoraMerger.detached`."""
        return self.merger.detached()

    def _become(self, state: _State, *, check_finite: bool = False) -> None:
        self.merger.set_adapters(state.adapters(1.0), check_finite=check_finite)
        self._state = state

    def _free_name(self) -> str:
        number = len(self._state.loaded)
        while f"default_{number}" in self._state.loaded:
            number += 1
        return f"default_{number}"

    def _require(self, names: Iterable[str]) -> None:
        missing = [name for name in names if name not in self._state.loaded]
        if missing:
            loaded = ", ".join(self._state.loaded) or "none"
            raise InvalidParameter("adapter_names", f"has {', '.join(map(repr, missing))}; loaded are {loaded}")

    def _require_components(self, components: Sequence[str]) -> None:
        if not components or set(components) - set(COMPONENTS):
            raise InvalidParameter("components", f"must be some of {', '.join(COMPONENTS)}, and is {components!r}")
