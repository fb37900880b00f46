"""A small CLIP vocabulary of our own: byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909) over a word list.

Every text can be spelled, in bytes if need be; a word of the list is one token, so that a catalogue's prompts fit into
CLIP's 77.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
_WORD_END = "</w>"

_WORDS = """
a an the of on in at with and over under around behind beside no not from to for
photo photograph picture product catalogue catalog studio shot close up view front side top bottom left right
backdrop background surface table floor wall shelf room scene display stand window garden street beach forest kitchen
red green blue yellow orange purple violet pink brown black white grey gray beige cream gold golden silver copper
bronze teal turquoise cyan magenta navy mint lavender coral amber ivory charcoal maroon olive peach crimson
plain solid gradient seamless paper cardboard wood wooden oak pine walnut marble stone slate concrete granite brick
tile tiles tiled ceramic fabric cloth linen cotton silk velvet wool leather canvas denim metal steel glass mirror
plastic sand snow grass water sky cloud clouds sea sunset sunrise stars cloudy night evening morning mist fog rain
leaves leaf flower flowers petals bokeh light lights lighting shadow shadows soft hard warm cool bright dark pale
pastel deep glossy matte shiny rough smooth blurred sharp clean minimal modern vintage rustic luxury elegant natural
festive neon
polka dot dots dotted diagonal stripe stripes striped checkered grid confetti terrazzo pattern patterned texture
textured circle circles square squares triangle triangles line lines spot spots noise
cup mug bottle shoe shoes bag watch lamp chair vase box jar plate bowl spoon coin coins rocket motorcycle cat camera
helmet person toy ball ring book phone paint painted reflection reflecting starry latte art tea chocolate eyes nose
can tube products patch embroidered visor foam rosetta matcha hot mirrored earth polished speckled
high low quality detailed realistic professional commercial simple colour color colours colors
"""


def write_tokenizer(folder: Path) -> int:
    """Write the files of a CLIPTokenizer into `folder` and return the number of entries of its vocabulary."""
    alphabet = list(_byte_letters().values())
    merges = _learn(_WORDS.split())
    entries = [*alphabet, *(letter + _WORD_END for letter in alphabet), *("".join(pair) for pair in merges), BEGIN, END]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({entry: place for place, entry in enumerate(entries)}), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    specials = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "do_lower_case": True, **specials}
    for name, content in (("special_tokens_map.json", specials), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return len(entries)


def _byte_letters() -> dict[int, str]:
    """CLIP's letter for each byte: itself where it prints, else one from U+0100 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def _learn(words: list[str]) -> list[tuple[str, str]]:
    """The most frequent pair of neighbours becomes one symbol, until every word is one; of equals the first by code."""
    spelled = [[*word[:-1], word[-1] + _WORD_END] for word in words]
    learned = []
    while counts := Counter(pair for word in spelled for pair in pairwise(word)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        learned.append(best)
        spelled = [_joined(word, best) for word in spelled]
    return learned


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out
