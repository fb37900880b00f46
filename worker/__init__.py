"""The GPU worker: one warm inpaint pipeline, one job after another."""
