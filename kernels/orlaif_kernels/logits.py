"""Statistics of logits that exist: one launch for all rows, or with PyTorch a chunk of those that count at a time.

Shapes: N completions, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from orlaif_kernels.rows import Rows, wide
from orlaif_kernels.source import Source

#: What a chunk of the PyTorch implementation holds, in numbers.
CHUNK_NUMBERS = 2**22


def direct(logits: Tensor) -> Tensor:
    """With rows that the kernel can address: at multiples of V, with gaps in a view such as ``logits[:, :-1]``; a copy
    only where the strides leave no other way."""
    n, t, v = logits.shape
    stride_n, stride_t, stride_v = logits.stride()
    whole = stride_v == 1 and (t == 1 or stride_t == v) and (n == 1 or (stride_n % v == 0 and stride_n >= t * v))
    return logits if whole else logits.contiguous()


def alike(logits: Tensor) -> Tensor:
    """Memory for their gradient, laid out alike, so that one address serves both."""
    x = direct(logits)
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


class Logits(Source):
    """[N, T, V], or [N, T + 1, V]: the last is what a model predicts after the last token, and is ignored.

    ``inplace`` in ``how``: the gradient takes their memory.
    """

    def statistics(self, rows: Rows) -> None:
        """One sweep."""
        if self.implementation == "triton":
            rows.launch(direct(self.x), statistics=True)
            return
        for at, place in self._chunks(rows.mask):
            rows.statistics(self.x[place], at)

    def gradients(self, rows: Rows, c: Tensor, h: Tensor, wanted: list[bool]) -> list[Tensor | None]:
        """One sweep more, from dl/dlogp and dl/dH, [N * T]."""
        logits = direct(self.x)
        out = logits if "inplace" in self.how else alike(logits)
        if self.implementation == "triton":
            rows.launch(logits, gradients=(c, h), out=out)
            out[:, rows.mask.shape[1] :].zero_()
            return [out, None, None]
        out.zero_()
        for at, place in self._chunks(rows.mask):
            some = logits[place]  # a copy
            rows.gradient(some, at, c, h, out=some)
            out[place] = some
        return [out, None, None]

    def _chunks(self, mask: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Numbers of the tokens that count, and their places (n, t)."""
        at = mask.flatten().nonzero().squeeze(1)
        for some in at.split(max(1, CHUNK_NUMBERS // max(1, self.vocabulary))):
            yield some, (some // mask.shape[1], some % mask.shape[1])


def transient_bytes(logits: Tensor, how: str) -> int:
    """What either pass holds at its height beside its arguments and results, in bytes.

    With ``torch``, for the rows of a chunk: a copy, that in float32 if it is narrower, distances to the largest logit
    and exponentials in float32 (or wider), and a flag each. (A soft cap, which needs more, is not counted.)
    """
    if how.startswith("triton"):
        return 0
    narrow, size = logits.element_size(), wide(logits).itemsize
    chunk = min(logits.numel(), max(CHUNK_NUMBERS, logits.shape[-1]))
    return chunk * (narrow + (size if narrow < size else 0) + 2 * size + 1)
