"""The safety checker: a picture too close to a forbidden concept comes back black and marked.

CLIP embeds the picture; its cosine to 17 concept embeddings is held against one threshold each. If the picture is near
one of three special-care concepts, every concept's threshold drops by 0.01 (Rando et al., "Red-Teaming the Stable
Diffusion Safety Filter", arXiv:2210.04610, section 2).
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPVisionModel

from worker.engine.config import load_json
from worker.engine.model import check_tensors
from worker.engine.weights_file import find_weights, read_weights, write_safetensors

logger = logging.getLogger(__name__)

CONCEPTS, SPECIAL_CARE = 17, 3
SPECIAL_CARE_ADJUSTMENT = 0.01


def cosine(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Cosines of every row of ``a [B, D]`` with every row of ``b [N, D]``: float32 ``[B, N]``."""
    return (F.normalize(a) @ F.normalize(b).t()).cpu().float().numpy()


def flags(
    special_cosines: np.ndarray, special_thresholds: np.ndarray, cosines: np.ndarray, thresholds: np.ndarray
) -> list[bool]:
    """One bool a picture, from cosines ``[B, N]`` and thresholds ``[N]``; scores are rounded to three decimals."""
    special = (np.round(special_cosines - special_thresholds, 3) > 0).any(axis=1)
    adjustment = np.where(special, np.float32(SPECIAL_CARE_ADJUSTMENT), np.float32(0))[:, None]
    return (np.round(cosines - thresholds + adjustment, 3) > 0).any(axis=1).tolist()


class StableDiffusionSafetyChecker(nn.Module):
    """State-dict keys are those of diffusers' class of this name, as transformers 5 writes them."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.vision_model = CLIPVisionModel(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        for name, count in (("concept_embeds", CONCEPTS), ("special_care_embeds", SPECIAL_CARE)):
            self.register_parameter(name, nn.Parameter(torch.ones(count, config.projection_dim), requires_grad=False))
            self.register_parameter(f"{name}_weights", nn.Parameter(torch.ones(count), requires_grad=False))
        self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.visual_projection.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.visual_projection.weight.device

    @torch.no_grad()
    def forward(self, clip_input: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
        """Flag each of `images` ``[B, 3, H, W]`` by its `clip_input` ``[B, 3, S, S]``; flagged ones come back zero."""
        embeds = self.visual_projection(self.vision_model(clip_input).pooler_output)
        flagged = flags(
            cosine(embeds, self.special_care_embeds),
            self.special_care_embeds_weights.float().cpu().numpy(),
            cosine(embeds, self.concept_embeds),
            self.concept_embeds_weights.float().cpu().numpy(),
        )
        if any(flagged):
            logger.warning("%d of %d pictures were flagged by the safety checker", sum(flagged), len(flagged))
            keep = torch.tensor([not flag for flag in flagged], device=images.device)
            images = torch.where(keep[:, None, None, None], images, torch.zeros_like(images))
        return images, flagged

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, torch_dtype: torch.dtype | None = None, variant: str | None = None
    ) -> "StableDiffusionSafetyChecker":
        """Load `config.json` and `model[.variant].safetensors` from a folder.

        Raises CheckpointInvalid when a tensor is missing, extra or misshapen, UnsafeWeightsFormat for a pickle.
        """
        folder = Path(folder)
        model = cls(CLIPConfig(**load_json(folder / "config.json")))
        tensors = read_weights(find_weights(folder, "model", variant))
        # Checkpoints written before transformers 5 nest the tower once more and store a table of positions.
        renamed = {
            key.replace("vision_model.vision_model.", "vision_model.", 1): tensor
            for key, tensor in tensors.items()
            if not key.endswith("position_ids")
        }
        check_tensors({name: t.shape for name, t in model.state_dict().items()}, renamed, str(folder))
        model.load_state_dict(renamed)
        return model.to(torch_dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        write_safetensors(folder / "model.safetensors", self.state_dict())
