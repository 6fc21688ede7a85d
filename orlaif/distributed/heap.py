"""Memory of the host that is freed, and goes back to the system at once.

glibc keeps what was freed for what is allocated next, and the larger the blocks that a program frees, the larger those
that it keeps. That is right for a program that goes on as it began; one that reads each weight of a model once, in
many sizes, would be left holding hundreds of megabytes of nothing.

Source: mallopt(3) and malloc_trim(3) of glibc.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

#: Numbers of mallopt's settings in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Bytes from which a block is mapped by itself while weights are read.
_SMALL = 1 << 20
#: What glibc settles at by itself once a program has freed large blocks: those above are always mapped.
_SETTLED = 32 << 20


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Within, blocks of a megabyte and more go back when they are freed; at the end so does all that is free.

    Where the C library is another than glibc, nothing is different.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _SETTLED)
        library.mallopt(_TRIM_THRESHOLD, 2 * _SETTLED)
        library.malloc_trim(0)
