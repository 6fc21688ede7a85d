"""The LM head a chunk at a time: statistics and losses of hidden states, the ``[N * T, V]`` logits never at once.

Tokens that count are gathered and taken a chunk at a time. A chunk's logits are a GEMM into a buffer that every chunk
reuses. With a loss (:func:`losses`) the row pass turns them into the gradient where they stand, and two more GEMMs
carry that to the hidden states and the head while it is hot; so the forward pass makes the gradients too, and the
backward pass only scales them. ``linear_token_statistics`` makes the logits again in its backward pass: a fourth GEMM,
for a loss that needs all tokens of a completion first.

**Accumulation.** The head's gradient is summed over chunks in float32, whatever its dtype, the first chunk written
without a zero fill; it is divided by the normaliser once, at the end: dividing before would push fp16 into its
subnormals, and rounding after each chunk would bias bf16. For a 16-bit head of V x H the float32 sum is kept in two
halves A and B of 2 V H bytes each. At the end A is narrowed where it stands, B into A's freed second half, and A's
memory, now exactly V x H 16-bit numbers, is the gradient: no moment needs both the float32 sum and a separate result.

**Split vocabularies.** With a ``vocabulary_group`` the head's rows lie on several processes; see ``shard.py``.

**Ratios.** Log-probs of the reference, or of the policy that sampled, come by the same GEMMs in the same chunks and the
same row pass, so that with the same mask the ratio of an unchanged policy is exactly 1.

Shapes: N completions, T tokens, H hidden, V vocabulary, M tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Partial

from orlaif_kernels.arguments import LossSettings, check_tensors, choose, whole_number
from orlaif_kernels.batch import Batch
from orlaif_kernels.objective import GRPORank, Objective
from orlaif_kernels.rows import ENTROPY, LOGP, STATE_SLOTS, TERM_SLOTS, Rows, wide
from orlaif_kernels.shard import Shard
from orlaif_kernels.source import Source

#: Tokens per chunk on a GPU; on a CPU a chunk's logits are held to about this many numbers.
CHUNK_TOKENS = 2048
CHUNK_NUMBERS_CPU = 2**22
#: Rows of the head that a CPU, which has no GEMM from 16 to 32 bits, widens at a time; numbers narrowed at once.
_SLICE = 8192
_NARROW = 2**24


class Head(Source):
    """Hidden states [N, T, H], head [V, H], bias [V] or None, all of one dtype; and how their logits are made:
    implementation, chunk size, ``fp32`` where 16-bit ones are to be kept in float32, and the :class:`Shard` where these
    are not all rows of the head."""

    @staticmethod
    def of(
        hidden: Tensor,
        weight: Tensor,
        implementation: str,
        bias: Tensor | None = None,
        chunk_size: int | None = None,
        fp32_logits: bool = False,
        vocabulary_group: ProcessGroup | None = None,
    ) -> Head:
        """Checked, cast under autocast, and whole where a ``DTensor`` is sharded but for a ``vocabulary_group``."""
        check_tensors(hidden=hidden, weight=weight, bias=bias)
        if weight.ndim != 2 or weight.shape[1:] != hidden.shape[-1:] or weight.shape[0] == 0:
            raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be [V, {hidden.shape[-1]}]")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be [{weight.shape[0]}]")
        local = whole if vocabulary_group is None else own
        weight, bias = local(weight), None if bias is None else local(bias)
        shard = None if vocabulary_group is None else Shard.of(weight, vocabulary_group)
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None and tensor.dtype != hidden.dtype:
                raise ValueError(f"{name} is {tensor.dtype} but hidden is {hidden.dtype}; cast one, or use autocast")
        if chunk_size is None:
            rows = weight.shape[0] if shard is None else -(-shard.vocabulary // shard.group.size())
            small = max(64, min(CHUNK_TOKENS, CHUNK_NUMBERS_CPU // rows))
            chunk_size = CHUNK_TOKENS if hidden.is_cuda else small
        else:
            whole_number("chunk_size", chunk_size)
        chosen = choose(implementation, hidden)
        part = "" if shard is None else f"{shard.name} {shard.start} {shard.vocabulary}"
        return Head(hidden, weight, bias, f"{chosen} {chunk_size} {'fp32' if fp32_logits else 'same'} {part}")

    @property
    def shard(self) -> Shard | None:
        """Where the head's rows are."""
        name, *numbers = self.how.split()[3:] or ("",)
        return Shard(name, *map(int, numbers)) if name else None

    @property
    def vocabulary(self) -> int:
        """V, of all processes."""
        return self.head.shape[0] if self.shard is None else self.shard.vocabulary

    def rows(self, token_ids: Tensor, *rest: Any, **more: Any) -> Rows:
        """As of any source, with ids as this part of the head counts them."""
        return super().rows(token_ids - (0 if self.shard is None else self.shard.start), *rest, **more)

    def statistics(self, rows: Rows) -> None:
        """Chunk by chunk."""
        for at, _, logits, _ in self.chunks(rows.mask):
            self.chunk_statistics(rows, logits, at)

    def chunk_statistics(self, rows: Rows, logits: Tensor, at: Tensor) -> None:
        """Of a chunk, whole rows."""
        rows.statistics(logits, at)
        if self.shard is not None:
            ids = rows.token_ids.flatten()[at]
            owned = (ids >= 0) & (ids < logits.shape[-1])
            rows.state[:, at] = self.shard.combine(rows.state[:, at], owned, rows.settings)

    def gradients(self, rows: Rows, c: Tensor, h: Tensor, wanted: list[bool]) -> list[Tensor | None]:
        """By the logits made again, from dl/dlogp and dl/dH, [N * T]; None where not wanted."""
        made = Gradients(self, wanted)
        for at, hidden, logits, out in self.chunks(rows.mask):
            rows.gradient(logits, at, c, h, out)
            made.add(at, hidden, out)
        d_hidden, first, second, d_bias = made.done()
        if first.dtype != self.head.dtype:
            first = narrow(first, second, torch.ones((), dtype=first.dtype, device=first.device), self.head.dtype)
        results = (d_hidden, first, d_bias.to(self.head.dtype))
        return [x if want else None for x, want in zip(results, wanted, strict=True)]

    @property
    def head(self) -> Tensor:
        """The weight, which is never None here."""
        assert self.weight is not None
        return self.weight

    def chunks(self, mask: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Tokens i64[M] that count, their hidden states, their logits, and where the gradient of these goes.

        That is the logits' own memory, but for float32 logits of 16-bit hidden states, whose GEMMs want 16 bits.
        """
        counted, flat = mask.flatten(), self.x.reshape(-1, self.x.shape[-1])
        capturing = flat.is_cuda and torch.cuda.is_current_stream_capturing()
        places = torch.arange(counted.numel(), device=counted.device) if capturing else counted.nonzero().squeeze(1)
        size = max(1, min(int(self.how.split()[1]), places.numel()))
        dtype = torch.float32 if "fp32" in self.how and flat.dtype.itemsize == 2 else flat.dtype
        buffer = flat.new_empty(size, self.head.shape[0], dtype=dtype)
        out = buffer if dtype == flat.dtype else flat.new_empty(buffer.shape)
        for at in places.split(size):
            hidden, logits = flat[at], buffer[: at.numel()]
            if self.bias is not None:
                logits.copy_(self.bias.expand_as(logits))
            _gemm(logits, hidden, self.head.t(), beta=int(self.bias is not None))
            yield at, hidden, logits, out[: at.numel()]


def whole(weight: Tensor) -> Tensor:
    """A sharded head (FSDP2, tensor parallel) gathered; its gradient goes back to the shards as their mean, which is
    FSDP2's convention for processes with different tokens, and the thing itself for processes with the same."""
    if not isinstance(weight, DTensor):
        return weight
    mesh = weight.device_mesh
    full = weight.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if full.requires_grad:
        full.register_hook(lambda grad: grad / mesh.size())
    return full


def own(weight: Tensor) -> Tensor:
    """This process's part of a ``DTensor``."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


class Gradients:
    """Where the gradients of hidden states, head and bias gather; what is not wanted stays empty."""

    def __init__(self, head: Head, wanted: list[bool]) -> None:
        vocabulary, width = head.head.shape
        self.head, self.first = head, True
        hidden, weight = head.x, head.head
        self.hidden = (
            torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else hidden.new_empty(0)
        )
        rows = (0, 0)
        if wanted[1]:
            half = (vocabulary + 1) // 2
            rows = (half, vocabulary - half) if weight.dtype.itemsize == 2 else (vocabulary, 0)
        dtype = wide(hidden)
        self.halves = [weight.new_empty((n, width), dtype=dtype) for n in rows]
        self.bias = weight.new_zeros(vocabulary if wanted[2] else 0, dtype=dtype)

    @property
    def wanted(self) -> bool:
        """Whether there is any."""
        return any(tensor.numel() for tensor in (self.hidden, self.bias, *self.halves))

    def add(self, at: Tensor, hidden: Tensor, dlogits: Tensor) -> None:
        """The two GEMMs of a chunk."""
        if self.hidden.numel():
            self.hidden.view(-1, hidden.shape[-1]).index_copy_(0, at, dlogits @ self.head.head)
        start = 0
        for half in self.halves:
            if half.numel():
                _gemm(half, dlogits[:, start : start + half.shape[0]].t(), hidden, beta=int(not self.first))
                start += half.shape[0]
        if self.bias.numel():
            self.bias += dlogits.sum(0, dtype=self.bias.dtype)
        self.first = False

    def done(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """hidden, the two halves, bias: undivided, and 0 where no chunk was."""
        if self.first:
            for half in self.halves:
                half.zero_()
        if self.head.shard is not None and self.hidden.numel():
            self.head.shard.sum(self.hidden)
        return self.hidden, self.halves[0], self.halves[1], self.bias


def _gemm(total: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    """``total = beta total + a @ b``, summed in the total's dtype, which may be wider; what beta 0 leaves out is not
    read."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=beta)
    elif a.is_cuda:
        torch.addmm(total, a, b, beta=beta, out_dtype=total.dtype, out=total)
    else:  # no such GEMM on a CPU: widen some columns of the longer side, the vocabulary's, at a time
        rows = total.shape[0] > total.shape[1]
        for start in range(0, max(total.shape), _SLICE):
            at = slice(start, start + _SLICE)
            one, two = (a[at], b) if rows else (a, b[:, at])
            (total[at] if rows else total[:, at]).addmm_(one.to(total.dtype), two.to(total.dtype), beta=beta)


def narrow(first: Tensor, second: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The float32 halves A, B times ``scale`` as one 16-bit [V, H], in A's own memory.

    A number is read before its bytes are written: the first piece goes through memory of its own, and a piece [n, 2 n)
    of A is written to the bytes of numbers [n / 2, n), which have been read. Each piece is one read and one write.
    """
    out = first.view(dtype).view(-1)
    numbers, done = first.view(-1), min(first.numel(), 2**12)
    out[:done] = (numbers[:done] * scale).to(dtype)
    while done < numbers.numel():
        piece = numbers[done : done + min(done, _NARROW)]
        torch.mul(piece, scale, out=out[done : done + piece.numel()])
        done += piece.numel()
    for piece in second.view(-1).split(_NARROW):
        torch.mul(piece, scale, out=out[done : done + piece.numel()])
        done += piece.numel()
    return out[:done].view(-1, first.shape[1])


def losses(
    head: Head, batch: Batch, objective: Objective, settings: LossSettings, wanted: list[bool]
) -> tuple[Tensor, dict[str, Tensor], Gradients]:
    """The undivided loss, sums of metrics and gradients of a token-level objective, in one pass over the chunks."""
    gradients = Gradients(head, wanted)
    fused = head.implementation == "triton" and isinstance(objective, GRPORank) and objective.fusible
    fused = fused and head.shard is None
    rows = head.rows(batch.token_ids, batch.mask, settings, slots=TERM_SLOTS if fused else STATE_SLOTS)
    state = rows.state
    c, h = state.new_zeros(2, 0 if fused else state.shape[1])
    total, sums = state.new_zeros(()), dict[str, Tensor]()
    for at, hidden, logits, out in head.chunks(batch.mask):
        if fused:
            rows.launch(logits, index=at, statistics=True, term=batch, out=out if gradients.wanted else None)
        else:
            head.chunk_statistics(rows, logits, at)
            loss, more, c[at], h[at] = batch.derivatives(objective, state[LOGP, at], state[ENTROPY, at], at)
            total, sums = total + loss, {name: value + sums.get(name, 0.0) for name, value in more.items()}
            if gradients.wanted:
                rows.gradient(logits, at, c, h, out)
        if gradients.wanted:
            gradients.add(at, hidden, out)
    if fused:
        total, sums = batch.of_state(state)
    elif not sums:  # no token counts: the names of the metrics all the same
        none = torch.empty(0, dtype=torch.long, device=batch.mask.device)
        sums = batch.derivatives(objective, state[LOGP, none], state[ENTROPY, none], none)[1]
    return total, sums, gradients
