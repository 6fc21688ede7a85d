"""Text of any script and length on a picture: in lines that fit, each character by a font that has it.

A character that no font of this machine has is drawn as its code point (``\\u7ea2``), so that no two texts look alike.
"""

from __future__ import annotations

import functools
import itertools
import logging
import unicodedata
from collections.abc import Sequence

from PIL import ImageDraw, ImageFont

log = logging.getLogger(__name__)

LINE_HEIGHT = 20
_SIZE = 14
#: A longer text loses its middle, and says so.
_MOST_LINES = 60
#: Looked for where the system keeps its fonts, after the one that Pillow brings along.
_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "uming.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "msyh.ttc",
    "simsun.ttc",
    "malgun.ttf",
    "YuGothM.ttc",
    "NotoSans-Regular.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "DejaVuSans.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    "Symbola_hint.ttf",
    "Symbola.ttf",
    "unifont.otf",
    "unifont.ttf",
)

#: Debian's packages of fonts, by the first word of a character's name; all others are in fonts-noto-core.
_PACKAGES = dict.fromkeys(("CJK", "HANGUL", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "FULLWIDTH"), "fonts-noto-cjk")
_PACKAGES["SYMBOLS"] = "fonts-symbola"
_TOLD: set[str] = set()

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@functools.cache
def _fonts() -> tuple[Font, ...]:
    fonts: list[Font] = [ImageFont.load_default(size=_SIZE)]
    for name in _FONTS:
        try:
            fonts.append(ImageFont.truetype(name, _SIZE))
        except OSError:  # not on this machine
            continue
    return tuple(fonts)


@functools.cache
def _has(font: Font, character: str) -> bool:
    """Whether a font has a character; it draws all that it lacks in the same way."""
    lacking = bytes(font.getmask("\U0010fffe"))
    return character == " " or bytes(font.getmask(character)) not in (lacking, b"")


@functools.cache
def _font_of(character: str) -> Font | None:
    """The first font that has a character."""
    for font in _fonts():
        if _has(font, character):
            return font
    if unicodedata.category(character) not in ("Cc", "Cf"):
        is_symbol = unicodedata.category(character) in ("So", "Sk")  # emoji
        name = "SYMBOLS" if is_symbol else unicodedata.name(character, "?").split()[0]
        if name not in _TOLD:  # once for each script
            _TOLD.add(name)
            package = _PACKAGES.get(name, "fonts-noto-core")
            log.warning(
                "no font of this machine has %r (%s); the board shows code points (Debian's %s brings one)",
                *(character, name, package),
            )
    return None


def _visible(text: str) -> str:
    """Characters without a font as code points."""
    return "".join(c if _font_of(c) else f"\\u{ord(c):04x}" if ord(c) < 65536 else f"\\U{ord(c):08x}" for c in text)


def _width(text: str) -> float:
    return sum(_advance(character) for character in text)


@functools.cache
def _advance(character: str) -> float:
    return float((_font_of(character) or _fonts()[0]).getlength(character))


def wrapped(text: str, width: float) -> list[str]:
    """Lines of a text that are no wider than ``width`` pixels; broken at blanks, and within words that are wider.

    Args:
        text: anything; the line breaks in it are kept.
        width: pixels.

    Returns:
        One line or more, made of characters that can be drawn. Of more than 60 lines the middle is left out.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line, room = "", width
        for piece in _pieces(_visible(paragraph.replace("\t", "    "))):
            for part in _fitting(piece, width):
                needed = _width(part)
                if line and needed > room:
                    lines.append(line)
                    line, room = "", width
                line, room = line + part, room - needed
        lines.append(line)
    if len(lines) <= _MOST_LINES:
        return lines
    half = _MOST_LINES // 2
    return [*lines[:half], f"... {len(lines) - 2 * half} lines more ...", *lines[-half:]]


def _pieces(text: str) -> list[str]:
    """Words with the blanks behind them; each character of a script that has no blanks."""
    pieces: list[str] = []
    for character in text:
        wide = unicodedata.east_asian_width(character) in "WF"
        if not pieces or wide or pieces[-1].endswith(" ") or unicodedata.east_asian_width(pieces[-1][-1]) in "WF":
            pieces.append(character)
        else:
            pieces[-1] += character
    return pieces


def _fitting(piece: str, width: float) -> list[str]:
    """A piece in parts that fit."""
    if _width(piece) <= width:
        return [piece]
    parts = [""]
    for character in piece:
        if parts[-1] and _width(parts[-1]) + _advance(character) > width:
            parts.append("")
        parts[-1] += character
    return parts


def draw_lines(draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], color: str) -> None:
    """Draw lines of :func:`wrapped`, the first at ``place``."""
    x, y = place
    for line in lines:
        at = float(x)
        for font, text in _runs(line):
            draw.text((at, y), text, fill=color, font=font)
            at += float(font.getlength(text))
        y += LINE_HEIGHT


def _runs(line: str) -> list[tuple[Font, str]]:
    """A line in parts of one font each.

    One with words from right to left is kept whole where a font has all of it: letters are then joined and words put
    in their order by Pillow (with libraqm, which its wheels bring along). Else its words stay in the order of the text.
    """
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in line):
        for font in _fonts():
            if all(_has(font, character) for character in line):
                return [(font, line)]
    fonts = itertools.groupby(line, key=lambda character: _font_of(character) or _fonts()[0])
    return [(font, "".join(run)) for font, run in fonts]
