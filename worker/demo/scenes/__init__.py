"""Product photographs that never were: made from numbers, each with its mask and its caption.

palette ─▶ fields ─▶ backdrops ─┐
                     products ──┼─▶ scene (light, shadow, lens) ─▶ masks, captions
                     looks ─────┘
"""

from worker.demo.scenes.scene import Scene, make_scene

__all__ = ["Scene", "make_scene"]
