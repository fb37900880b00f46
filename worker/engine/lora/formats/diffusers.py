"""How diffusers has named LoRA tensors over the years.

| since | key |
| --- | --- |
| 0.10 (attention processors) | `[unet.]….attn1.processor.to_q_lora.down.weight`, `….self_attn.to_q_lora.up.weight` |
| 0.17 | `unet.….to_q.lora.down.weight`, `text_encoder.….q_proj.lora_linear_layer.down.weight` |
| 0.22 | `unet.….to_q.lora_A.weight`: PEFT's own, see `peft.py` |

Without `alpha` (and without the metadata that `peft.py` reads) the scale is 1.
"""

from collections.abc import Iterator

LEAVES = {
    r"\.lora\.down\.weight": "down",
    r"\.lora\.up\.weight": "up",
    r"\.lora_linear_layer\.down\.weight": "down",
    r"\.lora_linear_layer\.up\.weight": "up",
    r"_lora\.down\.weight": "down",
    r"_lora\.up\.weight": "up",
}

# The projections as the attention processors called them; in the text encoder, too, where their names differ.
_PROCESSOR_NAMES = {
    ".attn1.to_q": ".attn1.processor.to_q",
    ".attn1.to_k": ".attn1.processor.to_k",
    ".attn1.to_v": ".attn1.processor.to_v",
    ".attn1.to_out.0": ".attn1.processor.to_out",
    ".attn2.to_q": ".attn2.processor.to_q",
    ".attn2.to_k": ".attn2.processor.to_k",
    ".attn2.to_v": ".attn2.processor.to_v",
    ".attn2.to_out.0": ".attn2.processor.to_out",
    ".self_attn.q_proj": ".self_attn.to_q",
    ".self_attn.k_proj": ".self_attn.to_k",
    ".self_attn.v_proj": ".self_attn.to_v",
    ".self_attn.out_proj": ".self_attn.to_out",
}


def stems(component: str, path: str) -> Iterator[str]:
    """The spellings of one module: `path` with and without its component, and as its attention processor's."""
    for spelling in (path, *_processor_path(path)):
        # transformers 5 dropped the level `text_model`, and with it what such a version writes.
        for form in dict.fromkeys((spelling, spelling.removeprefix("text_model."))):
            yield form
            yield f"{component}.{form}"


def _processor_path(path: str) -> Iterator[str]:
    for ending, processor in _PROCESSOR_NAMES.items():
        if path.endswith(ending):
            yield path.removesuffix(ending) + processor
