"""The demo's own model, made here: a checkpoint in the real layout that needs no download."""
