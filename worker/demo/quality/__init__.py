"""How good the demo's model is, in numbers, and a sheet of pictures to see it."""
