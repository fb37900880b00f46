"""How the demo's model is trained: autoencoder, then denoiser and text encoder, then a LoRA for each brand look.

    settings ─▶ run ─▶ autoencoder ─▶ pools of latents ─▶ denoiser ─▶ checkpoint/ ─▶ looks ─▶ loras/

Every stage is a `loop.Stage`; the loop saves, resumes, logs and keeps the time. Numbers that a step draws come from a
generator seeded by (seed, stage, step), so that a run that was cut off goes on as if it had not been.
"""
