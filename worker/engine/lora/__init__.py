"""LoRAs: read in every format, matched to a model, merged into its weights bit-reversibly or mixed row by row."""

from worker.engine.lora.adapters import LoraAdapters
from worker.engine.lora.merge import LoraMerger
from worker.engine.lora.mixed import MixedLoras
from worker.engine.lora.sets import Adapter
from worker.engine.lora.targets import TargetTable, target_table
from worker.engine.lora.weights import LoraWeights, read_lora

__all__ = [
    "Adapter",
    "LoraAdapters",
    "LoraMerger",
    "LoraWeights",
    "MixedLoras",
    "TargetTable",
    "read_lora",
    "target_table",
]
