"""Which container a media file is, and whether it is all there: by its structure, without decoding.

Decoders read a file that was cut off (a download that broke, a full disk) up to the cut and stop without a word, so
that half a video would pass for a whole one. Containers say how long their parts are; a part that ends behind the end
of the file is one that is not all there. What the structure does not tell (a raw stream, a cut between frames) passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orlaif.data.mpeg_streams import packets_of, program_cut_off, transport_cut_off

#: Bytes read to recognise a container; transport and program streams may begin in the middle of a packet.
_HEAD = 8192
_TAIL = 1 << 20
_ASF = bytes.fromhex("3026b2758e66cf11"), bytes.fromhex("3626b2758e66cf11")  # header and data objects
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_MAGIC = {
    b"\x1aE\xdf\xa3": "matroska",
    b"FLV": "flv",
    b"OggS": "ogg",
    _ASF[0]: "asf",
    b"GIF8": "gif",
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "mjpeg",
}


def container_of(file: Any) -> str:
    """The container of an open binary file: mp4, matroska, avi, ts, ps, flv, ogg, asf, gif, png, mjpeg, or other."""
    file.seek(0)
    head = file.read(_HEAD)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mp4"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    if packets_of(head) is not None:
        return "ts"
    return "ps" if b"\0\0\1\xba" in head else "other"


def cut_off(file: Any, container: str) -> str | None:
    """What is missing from an open binary file that was cut off, in words; None where it looks whole.

    Args:
        file: binary, with ``seek``.
        container: as :func:`container_of` names it.
    """
    check = _CHECKS.get(container)
    if check is None:
        return None
    size = file.seek(0, 2)
    missing = check(file, size)
    return None if missing is None else f"it is cut off: {missing}"


def _read(file: Any, place: int, count: int) -> bytes:
    file.seek(place)
    return bytes(file.read(count))


def _beyond(what: str, end: int, size: int) -> str | None:
    return f"{what} ends {end - size} bytes behind the end of the file" if end > size else None


def _mp4(file: Any, size: int) -> str | None:
    place = 0
    while place + 8 <= size:
        head = _read(file, place, 16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0 is "up to the end of the file"
            return None
        if place + length > size:  # cameras append what is no box
            known = kind in (b"moov", b"mdat", b"moof")
            return _beyond(f"its box {kind.decode()}", place + length, size) if known else None
        place += length
    return None


def _avi(file: Any, size: int) -> str | None:
    place = 0
    while place + 12 <= size:  # one chunk of up to 2 GB after the other
        head = _read(file, place, 8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):  # never finished: written to a pipe
            return None
        if place + 8 + length > size + 1:
            return _beyond("its RIFF chunk", place + 8 + length, size)
        place += 8 + length + length % 2
    return None


def _asf(file: Any, size: int) -> str | None:
    place = 0
    while place + 24 <= size:
        head = _read(file, place, 24)
        length = int.from_bytes(head[16:24], "little")
        if length < 24:
            return None
        if place + length > size:
            return _beyond("its data", place + length, size) if head[:8] in _ASF else None
        place += length
    return None


def _matroska(file: Any, size: int) -> str | None:
    place, end = 0, size
    while place < end:
        head = _read(file, place, 12)
        id_length, length_length = _vint_length(head[0]), 0
        if id_length > 4:
            return f"its elements break off at byte {place}" if place else None
        if len(head) > id_length:
            length_length = _vint_length(head[id_length])
        if length_length == 0 or len(head) < id_length + length_length:
            return "it ends within the head of an element"
        if length_length > 8:
            return None
        kind = int.from_bytes(head[:id_length], "big")
        length = int.from_bytes(head[id_length : id_length + length_length], "big") & ((1 << 7 * length_length) - 1)
        place += id_length + length_length
        if length == (1 << 7 * length_length) - 1:  # not said, as in live streams: look at its parts
            if kind not in (_SEGMENT, _CLUSTER):
                return None
            continue
        if place + length > size:
            return _beyond("its Segment" if kind == _SEGMENT else "its last element", place + length, size)
        if kind == _SEGMENT:
            end = place + length
        else:
            place += length
    return None


def _vint_length(first: int) -> int:
    return 9 - first.bit_length()


def _ts(file: Any, size: int) -> str | None:
    packets = packets_of(_read(file, 0, _HEAD))
    if packets is None:
        return None
    start, length = packets
    skipped = max(0, size - start - _TAIL) // length * length
    return transport_cut_off(_read(file, start + skipped, size), 0, length)


def _ps(file: Any, size: int) -> str | None:
    return program_cut_off(_read(file, max(0, size - _TAIL), _TAIL))


def _flv(file: Any, size: int) -> str | None:
    place = 13
    while place + 11 <= size:
        head = _read(file, place, 4)
        if head[0] & 31 not in (8, 9, 18):
            return None
        place += 11 + int.from_bytes(head[1:4], "big")
        if place > size:
            return _beyond("its last tag", place, size)
        place += 4
    return None


def _ogg(file: Any, size: int) -> str | None:
    first = max(0, size - _TAIL)
    tail = _read(file, first, size - first)
    place = tail.rfind(b"OggS")
    head = tail[place : place + 27] if place >= 0 else b""
    if len(head) < 27:
        return "it ends within the head of a page"
    return _beyond("its last page", place + 27 + head[26] + sum(tail[place + 27 : place + 27 + head[26]]), len(tail))


def _png(file: Any, size: int) -> str | None:
    place = 8
    while place + 8 <= size:
        head = _read(file, place, 8)
        place += 12 + int.from_bytes(head[:4], "big")
        if head[4:] == b"IEND":
            return None
    return "it has no end"


def _ending(ending: bytes) -> Callable[[Any, int], str | None]:
    """A file that ends with ``ending``, but for zeros and line breaks."""

    def check(file: Any, size: int) -> str | None:
        tail = _read(file, max(0, size - _TAIL), _TAIL).rstrip(b"\0\r\n")
        return None if tail.endswith(ending) else "it has no end"

    return check


_CHECKS: dict[str, Callable[[Any, int], str | None]] = {
    "mp4": _mp4,
    "avi": _avi,
    "asf": _asf,
    "matroska": _matroska,
    "ts": _ts,
    "ps": _ps,
    "flv": _flv,
    "ogg": _ogg,
    "png": _png,
    "gif": _ending(b";"),
    "mjpeg": _ending(b"\xff\xd9"),
}
