"""LyCORIS' LoHa and LoKr (Yeh et al. 2024, arXiv:2309.14859) and its weight-decomposed variants.

Modules are spelled as in `kohya.py`, and PEFT writes the same leaves behind its own spelling.
"""

LEAVES = {
    **{rf"\.hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{rf"\.lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    r"\.dora_scale": "dora_scale",
}
