"""Pictures to tensors and back: the VAE's side of the pipeline.

Accepted everywhere a picture is asked for: a PIL image, a float array ``[H, W, C]`` or ``[B, H, W, C]``, a float tensor
``[C, H, W]`` or ``[B, C, H, W]``, values in 0..1, or a list of one of these. A tensor that has as many channels as the
VAE has latents is taken for latents and passes untouched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from worker.engine.errors import InvalidParameter
from worker.engine.masks import Box, apply_overlay, crop_region

Picture: TypeAlias = Image.Image | np.ndarray | torch.Tensor
Pictures: TypeAlias = Picture | list[Picture]

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
KINDS = (Image.Image, np.ndarray, torch.Tensor)
RESAMPLE = Image.Resampling.LANCZOS


def stretch(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize to exactly width × height; the aspect ratio may change."""
    return image.resize((width, height), resample=RESAMPLE)


def fill(image: Image.Image, width: int, height: int) -> Image.Image:
    """Fit inside width × height, centred; the bars left over repeat the picture's edge. Returns RGB."""
    wide = width / height < image.width / image.height  # wider than the target: bars above and below
    tall = width / height > image.width / image.height
    w = width if wide else image.width * height // image.height
    h = image.height * width // image.width if wide else height
    resized = image.resize((w, h), resample=RESAMPLE)
    left, top = width // 2 - w // 2, height // 2 - h // 2
    canvas = Image.new("RGB", (width, height))
    canvas.paste(resized, box=(left, top))
    if wide and top > 0:
        canvas.paste(resized.resize((width, top), box=(0, 0, width, 0)), box=(0, 0))
        canvas.paste(resized.resize((width, top), box=(0, h, width, h)), box=(0, top + h))
    elif tall and left > 0:
        canvas.paste(resized.resize((left, height), box=(0, 0, 0, height)), box=(0, 0))
        canvas.paste(resized.resize((left, height), box=(w, 0, w, height)), box=(left + w, 0))
    return canvas


def crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cover width × height, centred; what sticks out is cut. Returns RGB."""
    wide = width / height <= image.width / image.height
    w = image.width * height // image.height if wide else width
    h = height if wide else image.height * width // image.width
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image.resize((w, h), resample=RESAMPLE), box=(width // 2 - w // 2, height // 2 - h // 2))
    return canvas


RESIZE_MODES: dict[str, Callable[[Image.Image, int, int], Image.Image]] = {
    "default": stretch,
    "fill": fill,
    "crop": crop,
}


def numpy_to_pt(images: np.ndarray) -> torch.Tensor:
    """``[B, H, W, C]`` or ``[B, H, W]`` to ``[B, C, H, W]``."""
    images = images[..., None] if images.ndim == 3 else images
    return torch.from_numpy(images.transpose(0, 3, 1, 2))


def pt_to_numpy(images: torch.Tensor) -> np.ndarray:
    """``[B, C, H, W]`` of any dtype and device to float32 ``[B, H, W, C]``."""
    return images.cpu().permute(0, 2, 3, 1).float().numpy()


def pil_to_numpy(images: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of one size to float32 ``[B, H, W(, C)]`` in 0..1."""
    return np.stack([np.array(image).astype(np.float32) / 255.0 for image in images])


def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
    """Float ``[B, H, W, C]`` (or one ``[H, W, C]``) in 0..1 to 8-bit pictures, rounded half to even."""
    images = images[None] if images.ndim == 3 else images
    pixels = (images * 255).round().astype("uint8")
    return [Image.fromarray(p.squeeze(-1) if p.shape[-1] == 1 else p) for p in pixels]


def normalize(images: torch.Tensor) -> torch.Tensor:
    """0..1 to −1..1."""
    return 2.0 * images - 1.0


def denormalize(images: torch.Tensor) -> torch.Tensor:
    """−1..1 to 0..1, clamped."""
    return (images * 0.5 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class VaeImageProcessor:
    """Turns pictures into what a VAE encodes, and what it decodes into pictures.

    `vae_scale_factor`: pixels per latent. `field`: the argument's name in error messages. `do_normalize`: to −1..1.
    `do_binarize`: to 0 or 1 at 0.5. `do_convert_grayscale`: one channel; arrays and tensors may then leave it out.
    """

    vae_scale_factor: int = 8
    vae_latent_channels: int = 4
    do_normalize: bool = True
    do_binarize: bool = False
    do_convert_grayscale: bool = False
    field: str = "image"

    def preprocess(
        self,
        image: Pictures,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: Box | None = None,
    ) -> torch.Tensor:
        """``[B, C, height, width]`` in −1..1 (or 0..1, or {0, 1}), or the latents as given.

        Pictures go through Lanczos, arrays and tensors through nearest-neighbour. Missing height or width are the
        picture's own, rounded down to a multiple of `vae_scale_factor`. Values below 0 mean "already in −1..1".

        Raises InvalidParameter for anything that is not a picture, and for pictures that cannot be stacked.
        """
        items = self._listed(image)
        if isinstance(items[0], Image.Image):
            tensor = self._from_pil(items, height, width, resize_mode, crops_coords)
        else:
            tensor = self._stack(items)
            if isinstance(items[0], torch.Tensor) and tensor.shape[1] == self.vae_latent_channels:
                return tensor
            if resize_mode != "default" or crops_coords is not None:
                raise InvalidParameter(self.field, f"must be a PIL image for resize mode {resize_mode!r}")
            tensor = F.interpolate(tensor, size=self._size(tensor.shape[-2:], height, width))
        if self.do_normalize and tensor.min() >= 0:
            tensor = normalize(tensor)
        if self.do_binarize:
            tensor = (tensor >= 0.5).to(tensor.dtype)
        return tensor

    def postprocess(
        self, image: torch.Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """``[B, C, H, W]`` from the VAE to `output_type`; `do_denormalize` says per picture whether it is in −1..1."""
        if output_type not in OUTPUT_TYPES:
            raise InvalidParameter("output_type", f"must be one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}")
        if output_type == "latent":
            return image
        flags = [self.do_normalize] * len(image) if do_denormalize is None else do_denormalize
        image = torch.stack([denormalize(one) if flag else one for one, flag in zip(image, flags, strict=True)])
        if output_type == "pt":
            return image
        array = pt_to_numpy(image)
        return array if output_type == "np" else numpy_to_pil(array)

    def resize(self, image: Image.Image, height: int, width: int, resize_mode: str = "default") -> Image.Image:
        if resize_mode not in RESIZE_MODES:
            raise InvalidParameter("resize_mode", f"must be one of {', '.join(RESIZE_MODES)}, not {resize_mode!r}")
        return RESIZE_MODES[resize_mode](image, width, height)

    get_crop_region = staticmethod(crop_region)

    def apply_overlay(
        self, mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None
    ) -> Image.Image:
        """Lay the parts of `init_image` that the mask keeps (black) over `image`; see `masks.apply_overlay`."""
        if crop_coords is not None:
            x1, y1, x2, y2 = crop_coords
            image = crop(image, x2 - x1, y2 - y1)
        return apply_overlay(mask, init_image, image, crop_coords)

    def _listed(self, image: Pictures) -> list[Picture]:
        items = list(image) if isinstance(image, list | tuple) else [self._with_batch(image)]
        kind = next((k for k in KINDS if items and isinstance(items[0], k)), None)
        if kind is None or not all(isinstance(item, kind) for item in items):
            found = ", ".join(sorted({type(item).__name__ for item in items})) or "an empty list"
            raise InvalidParameter(self.field, f"must be PIL images, arrays or tensors, all of one kind, not {found}")
        if kind is not Image.Image and not all(item.ndim in (2, 3, 4) for item in items):
            raise InvalidParameter(self.field, "must have 2, 3 or 4 dimensions: (H, W), one picture, or a batch")
        return items

    def _with_batch(self, image: Picture) -> Picture:
        """A lone one-channel array or tensor of three dimensions may be one picture or a batch without channels."""
        if not self.do_convert_grayscale or isinstance(image, Image.Image) or getattr(image, "ndim", 0) != 3:
            return image
        if isinstance(image, torch.Tensor):
            return image.unsqueeze(1)
        return image[None] if image.shape[-1] == 1 else image[..., None]

    def _from_pil(
        self, images: list[Image.Image], height: int | None, width: int | None, mode: str, box: Box | None
    ) -> torch.Tensor:
        if box is not None:
            images = [image.crop(box) for image in images]
        height, width = self._size((images[0].height, images[0].width), height, width)
        images = [self.resize(image, height, width, mode) for image in images]
        if self.do_convert_grayscale:
            images = [image.convert("L") for image in images]
        elif wrong := {image.mode for image in images} - {"RGB"}:
            raise InvalidParameter(self.field, f"must be RGB, not {', '.join(sorted(wrong))}: use `.convert('RGB')`")
        return numpy_to_pt(pil_to_numpy(images))

    def _stack(self, items: list[np.ndarray] | list[torch.Tensor]) -> torch.Tensor:
        join = (torch.cat, torch.stack) if isinstance(items[0], torch.Tensor) else (np.concatenate, np.stack)
        if len({(*item.shape[-3:], item.ndim) if item.ndim < 4 else item.shape[1:] for item in items}) > 1:
            raise InvalidParameter(self.field, "must be pictures of one shape to be made in one call")
        stacked = join[0](items) if items[0].ndim == 4 else join[1](items)
        if isinstance(stacked, np.ndarray):
            tensor = numpy_to_pt(stacked)
        else:
            tensor = stacked.unsqueeze(1) if self.do_convert_grayscale and stacked.ndim == 3 else stacked
        if tensor.ndim != 4:
            raise InvalidParameter(self.field, "must have channels: (C, H, W) as a tensor, (H, W, C) as an array")
        if self.do_normalize and not tensor.is_floating_point():
            raise InvalidParameter(self.field, f"must hold floats in 0..1, not {tensor.dtype}: divide by 255 first")
        return tensor if tensor.is_floating_point() else tensor.float()

    def _size(self, own: Sequence[int], height: int | None, width: int | None) -> tuple[int, int]:
        wanted = (own[0] if height is None else height, own[1] if width is None else width)
        return tuple(side - side % self.vae_scale_factor for side in wanted)
