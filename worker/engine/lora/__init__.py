"""LoRAs: read in every format of the field, matched to a model, merged into its weights and taken out bit-exactly."""

from worker.engine.lora.adapters import LoraAdapters
from worker.engine.lora.merge import LoraMerger
from worker.engine.lora.sets import Adapter
from worker.engine.lora.targets import TargetTable, target_table
from worker.engine.lora.weights import LoraWeights, read_lora

__all__ = ["Adapter", "LoraAdapters", "LoraMerger", "LoraWeights", "TargetTable", "read_lora", "target_table"]
