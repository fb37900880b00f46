"""Where weights files are kept between jobs: on the device, in RAM, on disk, each within a budget."""

from worker.bank.bank import Budgets, LoraBank

__all__ = ["Budgets", "LoraBank"]
