"""The chart's autoscaling, tried in simulated time before it costs money: `python -m tests.simulation`."""
