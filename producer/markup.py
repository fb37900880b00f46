"""HTML that is escaped by construction: text becomes markup only through `element`."""

from __future__ import annotations

from html import escape

_VOID = {"img", "input", "br", "meta"}


class Markup(str):
    """Text that is HTML already, and safe as it is."""

    __slots__ = ()


Child = str | Markup | None


def element(tag: str, /, *children: Child, **attributes: str | bool | None) -> Markup:
    """`<tag …>children</tag>`. A str is escaped, Markup is not, None is left out.

    In attribute names `_` stands for `-` and a trailing one is dropped (`class_`, `aria_label`); True gives the bare
    name, False and None nothing.
    """
    parts = [tag]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{escape(value)}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening) if tag in _VOID else Markup(f"{opening}{fragment(*children)}</{tag}>")


def fragment(*children: Child) -> Markup:
    """The children side by side."""
    return Markup("".join(c if isinstance(c, Markup) else escape(c) for c in children if c is not None))
