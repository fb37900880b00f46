"""kohya-ss/sd-scripts: the module's path with underscores for dots, behind `lora_unet_` or `lora_te_`.

    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight   [rank, in]
    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight     [out, rank]
    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.alpha              a number

An underscore may stand for a dot or for itself, so a name is never parsed: every module of the model is spelled this
way, once from diffusers' path and once from LDM's, and the file's name is looked up among the spellings.
`lora_mid` is LoCon's core for convolutions (LyCORIS, Yeh et al. 2024, arXiv:2309.14859).
"""

from collections.abc import Iterable, Iterator

from worker.engine.lora.formats.ldm import ldm_paths

LEAVES = {
    r"\.lora_down\.weight": "down",
    r"\.lora_up\.weight": "up",
    r"\.lora_mid\.weight": "mid",
    r"\.alpha": "alpha",
}

# `lora_te1_` is the first text encoder as the scripts for two of them write it; LyCORIS alone says `lycoris_`.
_PREFIXES = {"unet": ("lora_unet_", "lycoris_"), "text_encoder": ("lora_te_", "lora_te1_")}


def stems(component: str, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of path and spelling for all `paths` of one component."""
    paths = list(paths)
    ldm = ldm_paths(paths) if component == "unet" else {}
    for path in paths:
        for form in dict.fromkeys((path, path.removeprefix("text_model."), ldm.get(path, path))):
            for prefix in _PREFIXES[component]:
                yield path, prefix + form.replace(".", "_")
