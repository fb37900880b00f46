"""IP-Adapters of a pipeline: loaded into the UNet, with the image encoder that sees for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil

from worker.engine.components import PipelineComponents
from worker.engine.errors import InvalidParameter
from worker.engine.image_prompts import encode_image
from worker.engine.ip_adapter import Groups, ScaleSettings, read_ip_adapter
from worker.engine.loading_options import require_known
from worker.engine.text import load_image_encoder

IPSource = str | Path | Groups


class PipelineImagePrompts(PipelineComponents):
    _brought_image_encoder = False

    @torch.no_grad()
    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: IPSource | list[IPSource],
        subfolder: str | list[str] = "",
        weight_name: str | list[str] | None = None,
        image_encoder_folder: str | None = "image_encoder",
        **options: Any,
    ) -> None:
        """Load IP-Adapters in the place of those that are loaded, and an image encoder where there is none.

        A source is a folder (with `subfolder` and `weight_name`), a file, or the two groups of tensors. The image
        encoder lies in `image_encoder_folder` below the first source's subfolder, or, where it is a path, below the
        source itself; None loads none, and calls then need `ip_adapter_image_embeds`.
        Raises CheckpointInvalid, UnsafeWeightsFormat, and InvalidParameter for sources that do not go together.
        """
        require_known(options)
        sources = _located(pretrained_model_name_or_path_or_dict, subfolder, weight_name)
        groups = [source if isinstance(source, Mapping) else read_ip_adapter(source) for source, _ in sources]
        encoder = None
        if self.image_encoder is None and image_encoder_folder is not None:
            encoder = self._read_image_encoder(*sources[0], image_encoder_folder)
        self.unet.load_ip_adapters(groups, [str(s) for s, _ in sources if not isinstance(s, Mapping)])
        if encoder is not None:
            self.image_encoder, self._brought_image_encoder = encoder, True
        if self.feature_extractor is None:
            side = 224 if self.image_encoder is None else self.image_encoder.config.image_size
            size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
            self.feature_extractor = CLIPImageProcessorPil(**size)

    def set_ip_adapter_scale(self, scale: ScaleSettings | Sequence[ScaleSettings]) -> None:
        """How much each IP-Adapter counts: a number, or numbers by block, in a list one each; see `ip_adapter`."""
        self.unet.set_ip_adapter_scale(scale)

    def unload_ip_adapter(self) -> None:
        """Remove all IP-Adapters, and the image encoder if it came with them."""
        self.unet.unload_ip_adapters()
        if self._brought_image_encoder:
            self.image_encoder, self._brought_image_encoder = None, False

    def encode_image(
        self, image: Any, device: Any, num_images_per_prompt: int, output_hidden_states: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(positive, negative) of pictures as CLIP sees them, each repeated; see `image_prompts.encode_image`."""
        made = encode_image(self.image_encoder, self.feature_extractor, image, bool(output_hidden_states))
        seen, nothing = (one.to(device).repeat_interleave(num_images_per_prompt, dim=0) for one in made)
        return seen, nothing

    def _read_image_encoder(self, source: Path | Groups, folder: Path | None, name: str) -> Any:
        if folder is None or isinstance(source, Mapping):
            rule = "cannot be found beside a dict of tensors: pass None, or make the pipeline with an image encoder"
            raise InvalidParameter("image_encoder_folder", rule)
        below = folder if "/" in name else source.parent
        return load_image_encoder(below / name, self.dtype).to(self.device)


def _located(sources: Any, subfolders: Any, names: Any) -> list[tuple[Path | Groups, Path | None]]:
    """Each source as a file (or tensors) and the folder it was named by."""
    lists = [value if isinstance(value, list) else [value] for value in (sources, subfolders, names)]
    count = max(map(len, lists))
    for field, given in zip(("pretrained_model_name_or_path_or_dict", "subfolder", "weight_name"), lists, strict=True):
        if len(given) not in (1, count):
            raise InvalidParameter(field, f"has {len(given)} entries for {count} IP-Adapters: give one, or one each")
    found: list[tuple[Path | Groups, Path | None]] = []
    for source, subfolder, name in zip(*(given * count if len(given) == 1 else given for given in lists), strict=True):
        if isinstance(source, Mapping):
            found.append((source, None))
        elif name is None:
            found.append((Path(source), Path(source).parent))
        else:
            found.append((Path(source) / (subfolder or "") / name, Path(source)))
    return found
