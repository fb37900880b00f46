"""What a pipeline is made of: eight parts, held by name, moved together, mended where a config is outdated."""

import inspect
import logging
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import nn
from tqdm.auto import tqdm

from worker.engine.config import Config
from worker.engine.errors import InvalidParameter
from worker.engine.image_processor import VaeImageProcessor
from worker.engine.schedulers import Scheduler

logger = logging.getLogger(__name__)

OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")


def require_scheduler(scheduler: Any) -> None:
    if not isinstance(scheduler, Scheduler):
        rule = f"has to be one of worker.engine.schedulers, not {type(scheduler).__module__}.{type(scheduler).__name__}"
        raise InvalidParameter("scheduler", f"{rule}: make it with their `from_config(scheduler.config)`")


def mended(scheduler: Scheduler) -> Scheduler:
    """The scheduler as diffusers' pipelines use it: `steps_offset` 1 and `skip_prk_steps` true, whatever an outdated
    config says. Configs without these keys are left alone. Raises InvalidParameter for what is no scheduler of ours."""
    require_scheduler(scheduler)
    wanted = {"steps_offset": 1, "skip_prk_steps": True}
    wrong = {key: value for key, value in wanted.items() if scheduler.config.get(key, value) != value}
    if wrong:
        logger.info("the scheduler's config is outdated; using %s", wrong)
    return scheduler.amended(**wrong) if wrong else scheduler


def default_sample_size(unet) -> int:
    """Side of the latent grid where a call gives no size.

    Checkpoints saved before diffusers 0.9.0 state too small a size by mistake; 64 was meant.
    """
    size, written_by = unet.config.get("sample_size"), unet.config.get("_diffusers_version")
    if size is None:
        raise InvalidParameter("height", "and `width` have to be given: the UNet's configuration has no `sample_size`")
    if written_by is not None and _release(written_by) < (0, 9) and size < 64:
        return 64
    return size


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


class PipelineComponents:
    """The constructor and what is true of any pipeline of these parts."""

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        scheduler,
        safety_checker,
        feature_extractor,
        image_encoder=None,
        requires_safety_checker: bool = True,
    ):
        """Parts as `from_pretrained` finds them; the last three, and text encoder and tokenizer, may be None.

        Raises InvalidParameter for a safety checker without a feature extractor.
        """
        if safety_checker is not None and feature_extractor is None:
            raise InvalidParameter("feature_extractor", "has to be given with a safety checker, or pass neither")
        if safety_checker is None and requires_safety_checker:
            logger.warning("no safety checker: whoever publishes the pictures has to check them")
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.unet = unet
        self.scheduler = mended(scheduler)
        self.safety_checker = safety_checker
        self.feature_extractor = feature_extractor
        self.image_encoder = image_encoder
        self.config = Config({"requires_safety_checker": requires_safety_checker})
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        shared = {"vae_scale_factor": self.vae_scale_factor, "vae_latent_channels": vae.config.latent_channels}
        self.image_processor = VaeImageProcessor(**shared)
        self.mask_processor = VaeImageProcessor(
            **shared, do_normalize=False, do_binarize=True, do_convert_grayscale=True, field="mask_image"
        )
        self._progress_bar_config: dict[str, Any] = {}

    @classmethod
    def component_names(cls) -> list[str]:
        parameters = inspect.signature(PipelineComponents.__init__).parameters
        return [name for name in parameters if name not in ("self", "requires_safety_checker")]

    @property
    def components(self) -> dict[str, Any]:
        """Every part by name: `StableDiffusionInpaintPipeline(**pipe.components)` shares them."""
        return {name: getattr(self, name) for name in self.component_names()}

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments that are no parts."""
        return dict(self.config)

    def modules(self) -> Iterator[nn.Module]:
        return (part for part in self.components.values() if isinstance(part, nn.Module))

    def networks(self) -> Iterator[nn.Module]:
        """The modules whose forwards are all that the models compute: a VAE's are its encoder and its decoder."""
        for part in self.modules():
            yield from (part.encoder, part.decoder) if part is self.vae else (part,)

    @property
    def device(self) -> torch.device:
        """Of the parts that are not on the CPU, else the CPU."""
        devices = [module.device for module in self.modules()]
        return next((device for device in devices if device.type not in ("cpu", "meta")), devices[0])

    @property
    def dtype(self) -> torch.dtype:
        return next(self.modules()).dtype

    def to(self, *args: Any, dtype: torch.dtype | None = None, device: Any = None, **options: Any) -> Self:
        """Move every part: `to(dtype)`, `to(device)`, `to(device, dtype)`, or by keyword. Changes and returns self."""
        options.pop("silence_dtype_warnings", None)
        if options:
            raise InvalidParameter(next(iter(options)), "is no argument of `to`: give a device, a dtype, or both")
        if len(args) > 2 or (len(args) == 2 and isinstance(args[0], torch.dtype)):
            raise InvalidParameter("to", "takes at most two arguments, the device first and then the dtype")
        for arg in args:
            if isinstance(arg, torch.dtype) and dtype is None:
                dtype = arg
            elif arg is not None and not isinstance(arg, torch.dtype) and device is None:
                device = arg
            elif arg is not None:
                raise InvalidParameter("to", "was given the device or the dtype twice: pass each once")
        for module in self.modules():
            module.to(device=device, dtype=dtype)
        return self

    def progress_bar(self, iterable=None, total: int | None = None):
        """A tqdm bar over `iterable` or of `total` steps, as `set_progress_bar_config` asks."""
        if iterable is None and total is None:
            raise InvalidParameter("total", "or `iterable` has to be given")
        return tqdm(iterable, total=total, **self._progress_bar_config)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Keyword arguments of tqdm, for example `disable=True`."""
        self._progress_bar_config = options

    def maybe_free_model_hooks(self) -> None:
        """Nothing is offloaded between calls: one process owns one device and keeps its models there."""
