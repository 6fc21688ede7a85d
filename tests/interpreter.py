"""Triton's interpreter, without its look through all of its language at each call of a device function.

At each it asks every name of its modules whether it is a builtin, to put its own in place: half of the time of a
kernel here. Which names are builtins does not change.
"""

from __future__ import annotations

from typing import Any


def remember_builtins() -> None:
    """Ask each module and class once, now, while none of them is patched."""
    from triton import language
    from triton.language import core
    from triton.runtime import interpreter

    places: tuple[Any, ...] = (language, core, language.math, core.tensor, core.tensor_descriptor_base)
    builtins = {place: [name for name in dir(place) if core.is_builtin(getattr(place, name, None))] for place in places}

    def patch_builtin(place: Any, builder: Any, *scope: Any) -> None:
        for name in builtins[place]:
            member = getattr(place, name)
            if core.is_builtin(member):  # by a launch around this one it is patched already
                interpreter._patch_attr(place, name, member, builder, *scope)

    interpreter._patch_builtin = patch_builtin
