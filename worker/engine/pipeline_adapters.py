"""What a pipeline's parts can be changed by: LoRAs, new words, image prompts, and switches of the networks.

Each method is diffusers' by name and signature and hands the work to the part it concerns.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from worker.engine import textual_inversion
from worker.engine.attention_settings import AttentionSettings
from worker.engine.errors import InvalidParameter
from worker.engine.loading_options import require_known
from worker.engine.lora import LoraAdapters
from worker.engine.pipeline_image_prompts import PipelineImagePrompts
from worker.engine.textual_inversion import Source


class PipelineAdapters(PipelineImagePrompts):
    _lora: LoraAdapters | None = None
    _lora_models: tuple[Any, ...] = ()
    save_lora_weights: ClassVar = staticmethod(LoraAdapters.save_lora_weights)

    # -- LoRA: see lora/adapters.py ---------------------------------------------------------------------------------

    @property
    def lora(self) -> LoraAdapters:
        """The adapters of this UNet and this text encoder; another UNet put in their place starts without any."""
        models = (self.unet, self.text_encoder)
        if self._lora is None or any(a is not b for a, b in zip(models, self._lora_models, strict=True)):
            self._lora, self._lora_models = LoraAdapters(*models), models
        return self._lora

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **options: Any,
    ) -> None:
        self.lora.load_lora_weights(pretrained_model_name_or_path_or_dict, adapter_name, hotswap, **options)

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        self.lora.set_adapters(adapter_names, adapter_weights)

    def get_active_adapters(self) -> list[str]:
        return self.lora.get_active_adapters()

    def get_list_adapters(self) -> dict[str, list[str]]:
        return self.lora.get_list_adapters()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        self.lora.delete_adapters(adapter_names)

    def disable_lora(self) -> None:
        self.lora.disable_lora()

    def enable_lora(self) -> None:
        self.lora.enable_lora()

    def unload_lora_weights(self) -> None:
        self.lora.unload_lora_weights()

    def fuse_lora(
        self,
        components: Sequence[str] = ("unet", "text_encoder"),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        self.lora.fuse_lora(components, lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self, components: Sequence[str] = ("unet", "text_encoder")) -> None:
        self.lora.unfuse_lora(components)

    @property
    def num_fused_loras(self) -> int:
        return self.lora.num_fused_loras

    @property
    def fused_loras(self) -> set[str]:
        return self.lora.fused_loras

    def to(self, *args: Any, **kwargs: Any) -> Self:
        with self.lora.detached():
            return super().to(*args, **kwargs)

    # -- new words: see textual_inversion.py --------------------------------------------------------------------------

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Source | list[Source],
        token: str | list[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        **options: Any,
    ) -> None:
        """Teach the text encoder new words; all are checked before one is added. Raises EmbeddingInvalid."""
        require_known(options)
        parts = self._words(tokenizer, text_encoder)
        textual_inversion.load(*parts, pretrained_model_name_or_path, token, subfolder, weight_name)

    def unload_textual_inversion(
        self, tokens: str | list[str] | None = None, tokenizer: Any = None, text_encoder: Any = None
    ) -> None:
        """Forget these words, with all their vectors, or every added word."""
        textual_inversion.unload(*self._words(tokenizer, text_encoder), tokens)

    def _words(self, tokenizer: Any, text_encoder: Any) -> tuple[Any, Any]:
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        text_encoder = self.text_encoder if text_encoder is None else text_encoder
        if tokenizer is None or text_encoder is None:
            raise InvalidParameter("tokenizer", "and text encoder are needed for textual inversion, and one is missing")
        return tokenizer, text_encoder

    # -- the networks' switches ---------------------------------------------------------------------------------------

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU (Si et al., arXiv:2309.11497): s scale the skips, b the backbone, of the two lowest levels."""
        self.unet.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        self.unet.disable_freeu()

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Query, key and value in one matrix product: fewer, larger products, the same numbers."""
        with self.lora.detached():  # the weights move
            for model in [self.unet] * unet + [self.vae] * vae:
                model.fuse_qkv_projections()

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        with self.lora.detached():
            for model in [self.unet] * unet + [self.vae] * vae:
                model.unfuse_qkv_projections()

    def enable_attention_slicing(self, slice_size: str | int | list[int] | None = "auto") -> None:
        """Attention a few heads at a time: less memory, the same numbers. "auto" halves, "max" takes one by one."""
        self.unet.set_attention_slice(slice_size)

    def disable_attention_slicing(self) -> None:
        self.unet.set_attention_slice(None)

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Raises FeatureUnavailable where xFormers is not installed."""
        for model in self.modules():
            if isinstance(model, AttentionSettings):
                model.enable_xformers_memory_efficient_attention(attention_op)

    def disable_xformers_memory_efficient_attention(self) -> None:
        for model in self.modules():
            if isinstance(model, AttentionSettings):
                model.disable_xformers_memory_efficient_attention()

    def enable_vae_slicing(self) -> None:
        """Encode and decode one picture at a time."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encode and decode large pictures in overlapping tiles; their seams are blended."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        self.vae.disable_tiling()
