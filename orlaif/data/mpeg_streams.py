"""Whether an MPEG transport or program stream ends with the end of a frame, by its last packets.

Both cut frames into packets of one length, and neither says how long the whole is. But packets are filled up (stuffed)
where the data of a frame, or of the stream, ends: a stream whose last packet is full to the brim ends in the midst of a
frame, as one does that was cut off. (A frame fits its packets exactly once in 184 times, or 2,048; such a file is
refused, and is accepted once remuxed.)
"""

from __future__ import annotations

_SYNC = 0x47
_START = b"\0\0\1"
_MIDST = "it ends in the midst of a frame"


def packets_of(head: bytes) -> tuple[int, int] | None:
    """Where the first packet of a transport stream begins, and the length of packets: 188, in m2ts 192, or 204.

    None where its first bytes, ``head``, are no packets.
    """
    for length in (188, 192, 204):
        for start in range(min(length, len(head))):
            places = range(start, len(head), length)
            if len(places) >= 3 and all(head[place] == _SYNC for place in places):
                return start, length
    return None


def transport_cut_off(tail: bytes, start: int, length: int) -> str | None:
    """What is missing at the end of a transport stream; None where its streams end with whole packets.

    Args:
        tail: its last bytes.
        start: where the first packet in ``tail`` begins.
        length: of its packets.
    """
    before = 4 if length == 192 else 0  # a time stamp goes before each
    if rest := (len(tail) - (start - before)) % length:
        return f"its last packet has {rest} of {length} bytes"
    wanted: dict[int, int] = {}  # bytes that each elementary stream still owes; -1 where it does not say
    full: dict[int, bool] = {}
    for place in range(start, len(tail) - 187, length):
        packet = tail[place : place + 188]
        stream, begins = int.from_bytes(packet[1:3], "big") & 0x1FFF, bool(packet[1] & 0x40)
        if packet[0] != _SYNC or not packet[3] & 0x10:  # without payload
            continue
        payload = packet[4 + (1 + packet[4] if packet[3] & 0x20 else 0) :]
        if begins:
            wanted.pop(stream, None)
            if payload[:3] == _START:
                said = int.from_bytes(payload[4:6], "big")
                wanted[stream] = 6 + said - len(payload) if said else -1
        elif wanted.get(stream, -1) >= 0:
            wanted[stream] -= len(payload)
        full[stream] = len(payload) == 184
    midst = any(owed > 0 or (owed == -1 and full[stream]) for stream, owed in wanted.items())
    return _MIDST if midst else None


def program_cut_off(tail: bytes) -> str | None:
    """What is missing at the end of a program stream, of which ``tail`` is the end; None where that cannot be told."""
    place, last, pack, longest = tail.find(_START + b"\xba"), 0, 0, 0
    while 0 <= place < len(tail):
        head = tail[place : place + 14]
        if head[:3] != _START[: len(head)]:
            return None  # padded with zeros, or not where a packet begins
        if len(head) < 6 and head[3:4] != b"\xb9":
            return "it ends within the head of a packet"
        kind = head[3]
        if kind == 0xB9:
            return None  # the end, and it says so
        if kind == 0xBA:
            length = 14 + (head[13] & 7 if len(head) > 13 else 0) if head[4] >> 6 == 1 else 12
        else:
            length = 6 + int.from_bytes(head[4:6], "big")
        if place + length > len(tail):
            return f"its last packet ends {place + length - len(tail)} bytes behind the end of the file"
        # Packets fill up what the head of a pack, where there is one, leaves of its length.
        pack = length + (pack if last in (0xBA, 0xBB) else 0)
        longest = max(longest, pack)
        last = kind
        place += length
    media = last == 0xBD or 0xC0 <= last <= 0xEF
    return _MIDST if media and longest > 1024 and pack >= longest else None
