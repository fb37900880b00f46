"""The names that other tools give our fields, as a table: rows made for them are taken as they are.

`A1111`: the body of `/sdapi/v1/img2img` of AUTOMATIC1111's web UI, whose images are addresses here instead of base64.
`FAL`: the input of fal.ai's `fal-ai/lora/inpaint`, `fal-ai/inpaint` and their like. `OPENAI`: a line of an OpenAI batch
(`custom_id`, `method`, `url`, `body`), whose body is a row of any of these. `SHORT`: for CSV columns.

What changes the picture and has no counterpart here is refused by its name, never dropped; `NEUTRAL` holds the values
of such fields that change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from farm.errors import InvalidParameter

Row = dict[str, Any]
Convert = Callable[[str, Any], Row]


def _is(field: str) -> Convert:
    return lambda alias, value: {field: value}


def _only_image(alias: str, value: Any) -> Row:
    if not isinstance(value, list) or len(value) != 1:
        raise InvalidParameter(alias, "holds one image here; write one row an image")
    return {"image": value[0]}


def _sampler(alias: str, value: Any) -> Row:
    name = SAMPLERS.get(" ".join(str(value).lower().split()))
    if name is None:
        raise InvalidParameter(alias, f"{value!r} has no counterpart here; there are {', '.join(sorted(SAMPLERS))}")
    return {"scheduler": name}


def _seed(alias: str, value: Any) -> Row:
    return {} if str(value) == "-1" else {"seed": value}  # "a random one": here it is made from the job's id


def _inverted(alias: str, value: Any) -> Row:
    return {"mask_polarity": "black_edits" if _truth(alias, value) else "white_edits"}


def _cropped(alias: str, value: Any) -> Row:
    return {} if _truth(alias, value) else {"padding_mask_crop": None}


def _clip_layers(alias: str, value: Any) -> Row:
    """A1111 counts the layers that are used from the end (1: all), diffusers those that are left out."""
    layers = _whole(alias, value)
    return {"clip_skip": layers - 1} if layers > 1 else {}


def _token(alias: str, value: Any) -> Row:
    if not isinstance(value, list):
        return {alias: value}
    return {alias: [_embedding(entry) for entry in value]}


def _embedding(entry: Any) -> Any:
    if not isinstance(entry, dict) or "tokens" not in entry:
        return entry
    tokens, rest = entry["tokens"], {name: value for name, value in entry.items() if name != "tokens"}
    if not isinstance(tokens, list) or len(tokens) != 1:
        raise InvalidParameter("embeddings.tokens", "holds one token here: an embedding is one word of the prompt")
    return {**rest, "token": tokens[0]}


def _size(alias: str, value: Any) -> Row:
    if not isinstance(value, dict) or value.keys() != {"width", "height"}:
        raise InvalidParameter(alias, "is {width, height} here; without it the crop's size is chosen by its shape")
    return dict(value)


def _settings(alias: str, value: Any) -> Row:
    row: Row = {}
    for name, setting in dict(value or {}).items():
        if name == "CLIP_stop_at_last_layers":
            row |= _clip_layers(name, setting)
        elif name == "sd_model_checkpoint":
            row["model"] = setting
        else:
            raise InvalidParameter(f"{alias}.{name}", "has no counterpart here; leave it out")
    return row


def _lora(alias: str, value: Any) -> Row:
    return {"loras": [{"path": value}]}


def _truth(alias: str, value: Any) -> bool:
    known = {"0": False, "false": False, "1": True, "true": True}.get(str(value).lower())
    if known is None:
        raise InvalidParameter(alias, f"must be 0 or 1, not {value!r}")
    return known


def _whole(alias: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InvalidParameter(alias, f"must be a whole number, not {value!r:.80}") from None


A1111: Final[Mapping[str, Convert]] = {
    "init_images": _only_image,
    "denoising_strength": _is("strength"),
    "cfg_scale": _is("guidance_scale"),
    "steps": _is("num_inference_steps"),
    "sampler_name": _sampler,
    "sampler_index": _sampler,  # its older name
    "inpainting_mask_invert": _inverted,
    "inpaint_full_res_padding": _is("padding_mask_crop"),
    "inpaint_full_res": _cropped,  # after the padding: without the crop there is none
    "CLIP_stop_at_last_layers": _clip_layers,
    "override_settings": _settings,
}
FAL: Final[Mapping[str, Convert]] = {
    "image_url": _is("image"),
    "mask_url": _is("mask"),
    "num_images": _is("num_images_per_prompt"),
    "noise_strength": _is("strength"),
    "model_name": _is("model"),
    "image_format": _is("output_format"),
    "image_size": _size,
}
SHORT: Final[Mapping[str, Convert]] = {"lora": _lora, "id": _is("custom_id")}
# Fields that are called the same and say it in another way.
SAME_NAME: Final[Mapping[str, Convert]] = {"seed": _seed, "embeddings": _token}

_ALIASES: Final = {**A1111, **FAL, **SHORT}
OPENAI: Final = {"custom_id", "method", "url", "body"}

# alias → values that change nothing ("*": whatever it is); any other value is refused.
NEUTRAL: Final[Mapping[str, tuple[Any, ...] | str]] = {
    "inpainting_fill": (1,),  # start from the original's noise, which is what an inpaint model does
    "resize_mode": (0,),
    "restore_faces": (False, None),
    "tiling": (False, None),
    "subseed": (-1,),
    "subseed_strength": (0,),
    "styles": ([], None),
    "include_init_images": "*",
    "override_settings_restore_afterwards": "*",
    "send_images": "*",
    "save_images": "*",
    "do_not_save_samples": "*",
    "do_not_save_grid": "*",
    "enable_safety_checker": "*",  # the farm's checkpoint decides that
    "sync_mode": "*",
    "prompt_weighting": (False, None),
}

SAMPLERS: Final[Mapping[str, str]] = {
    "euler": "euler",
    "euler a": "euler_ancestral",
    "lms": "lms",
    "heun": "heun",
    "dpm2": "kdpm2",
    "dpm2 a": "kdpm2_ancestral",
    "dpm++ 2m": "dpmpp_2m",
    "dpm++ 2m karras": "dpmpp_2m_karras",
    "dpm++ 2m sde": "dpmpp_2m_sde",
    "dpm++ 2m sde karras": "dpmpp_2m_sde_karras",
    "dpm++ sde": "dpmpp_sde",
    "ddim": "ddim",
    "ddpm": "ddpm",
    "plms": "pndm",
    "unipc": "unipc",
    "deis": "deis",
    "lcm": "lcm",
}


def translated(row: Row) -> Row:
    """The row in the farm's own words. Raises InvalidParameter for what has no counterpart, or is said twice."""
    if row.keys() == OPENAI and isinstance(row["body"], dict):
        row = {**row["body"], "custom_id": row["custom_id"]}
    if not (row.keys() & _ALIASES.keys() or row.keys() & NEUTRAL.keys() or row.keys() & SAME_NAME.keys()):
        return _with_scheduler(row)
    row = _with_scheduler(_with_schedule_type(_with_counts(dict(row))))
    own: Row = {}
    for name in row.keys() - _ALIASES.keys():
        _add(own, name, _kept(name, row[name]))
    for alias, convert in _ALIASES.items():  # in the table's order
        if alias in row:
            _add(own, alias, convert(alias, row[alias]))
    if row.keys() & A1111.keys() and "<lora:" in str(own.get("prompt", "")):
        raise InvalidParameter("prompt", "names LoRAs as <lora:…>; give them in the field loras, by address")
    return own


def _kept(name: str, value: Any) -> Row:
    if name in SAME_NAME:
        return SAME_NAME[name](name, value)
    if name not in NEUTRAL:
        return {name: value}
    allowed = NEUTRAL[name]
    if allowed != "*" and value not in allowed:
        raise InvalidParameter(name, f"{value!r:.80} has no counterpart here; leave it out")
    return {}


def _add(own: Row, alias: str, more: Row) -> None:
    for name, value in more.items():
        if name in own and name != "padding_mask_crop":
            raise InvalidParameter(name, f"is given twice, the second time as {alias!r}; give it once")
        own[name] = value


def _with_counts(row: Row) -> Row:
    """A1111 makes `n_iter` batches of `batch_size`."""
    if not row.keys() & {"n_iter", "batch_size"}:
        return row
    count = _whole("n_iter", row.pop("n_iter", 1)) * _whole("batch_size", row.pop("batch_size", 1))
    return {**row, "num_images": count}


def _with_schedule_type(row: Row) -> Row:
    """Beside a sampler, A1111's `scheduler` is the spacing of its steps."""
    sampler = next((name for name in ("sampler_name", "sampler_index") if name in row), None)
    if sampler is None or "scheduler" not in row:
        return row
    label, spacing = str(row[sampler]), str(row.pop("scheduler")).lower()
    if spacing == "karras" or (spacing == "automatic" and label.lower() in ("dpm++ 2m", "dpm++ 2m sde")):
        return {**row, sampler: f"{label} Karras"}
    if spacing in ("automatic", "uniform", "normal"):
        return row
    raise InvalidParameter(
        "scheduler", f"{spacing!r} beside a sampler has no counterpart here; use Karras or Automatic"
    )


def _with_scheduler(row: Row) -> Row:
    """fal's schedulers go by A1111's labels."""
    label = " ".join(str(row.get("scheduler", "")).lower().split())
    return {**row, "scheduler": SAMPLERS[label]} if label in SAMPLERS else row
