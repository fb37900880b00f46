"""What every process of the farm shares, and its control plane. Never imports torch."""

__version__ = "0.1.0"
