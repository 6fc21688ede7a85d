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

**Ratios.** Log-probs of the reference, or of the policy that sampled, come by the same GEMMs in the same chunks and the
same row pass, so that with the same mask the ratio of an unchanged policy is exactly 1.

Shapes: N completions, T tokens, H hidden, V vocabulary, M tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from orlaif_kernels.arguments import LossSettings, choose
from orlaif_kernels.batch import Batch
from orlaif_kernels.objective import GRPORank, Objective
from orlaif_kernels.rows import ENTROPY, LOGP, STATE_SLOTS, TERM_SLOTS, Rows
from orlaif_kernels.statistics import wide

#: Tokens per chunk on a GPU; on a CPU a chunk's logits are held to about this many numbers.
CHUNK_TOKENS = 2048
CHUNK_NUMBERS_CPU = 2**22
#: Rows of the head that a CPU, which has no GEMM from 16 to 32 bits, widens at a time; numbers narrowed at once.
_SLICE = 8192
_NARROW = 2**24


@dataclass(frozen=True)
class Head:
    """Hidden states [N, T, H], head [V, H], bias [V] or None, all of one dtype; and how their logits are made:
    implementation, chunk size, and ``fp32`` where 16-bit ones are to be kept in float32."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    how: str

    @staticmethod
    def of(
        hidden: Tensor,
        weight: Tensor,
        implementation: str,
        bias: Tensor | None = None,
        chunk_size: int | None = None,
        fp32_logits: bool = False,
    ) -> Head:
        """Checked, cast under autocast, and whole where a ``DTensor`` is sharded."""
        if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
            raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be [V, {hidden.shape[-1]}]")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be [{weight.shape[0]}]")
        weight, bias = whole(weight), None if bias is None else whole(bias)
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None and tensor.dtype != hidden.dtype:
                raise ValueError(f"{name} is {tensor.dtype} but hidden is {hidden.dtype}; cast one, or use autocast")
        if chunk_size is None:
            small = max(64, min(CHUNK_TOKENS, CHUNK_NUMBERS_CPU // weight.shape[0]))
            chunk_size = CHUNK_TOKENS if hidden.is_cuda else small
        elif chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be 1 or more")
        chosen = choose(implementation, hidden)
        return Head(hidden, weight, bias, f"{chosen} {chunk_size} {'fp32' if fp32_logits else ''}")

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """hidden, weight, bias."""
        return self.hidden, self.weight, self.bias

    @property
    def implementation(self) -> str:
        """``torch`` or ``triton``."""
        return self.how.split()[0]

    @property
    def wanted(self) -> list[bool]:
        """Which of hidden, weight and bias a gradient is asked of."""
        learning = torch.is_grad_enabled()
        return [learning and x is not None and x.requires_grad for x in self.tensors]

    def chunks(self, mask: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Tokens i64[M] that count, their hidden states, their logits, and where the gradient of these goes.

        That is the logits' own memory, but for float32 logits of 16-bit hidden states, whose GEMMs want 16 bits.
        """
        counted, flat = mask.flatten(), self.hidden.reshape(-1, self.hidden.shape[-1])
        capturing = flat.is_cuda and torch.cuda.is_current_stream_capturing()
        places = torch.arange(counted.numel(), device=counted.device) if capturing else counted.nonzero().squeeze(1)
        size = max(1, min(int(self.how.split()[1]), places.numel()))
        dtype = torch.float32 if "fp32" in self.how and flat.dtype.itemsize == 2 else flat.dtype
        buffer = flat.new_empty(size, self.weight.shape[0], dtype=dtype)
        out = buffer if dtype == flat.dtype else flat.new_empty(buffer.shape)
        for at in places.split(size):
            hidden, logits = flat[at], buffer[: at.numel()]
            if dtype != flat.dtype:
                self._fp32(hidden, logits)
            elif self.bias is None:
                torch.mm(hidden, self.weight.t(), out=logits)
            else:
                torch.addmm(self.bias, hidden, self.weight.t(), out=logits)
            yield at, hidden, logits, out[: at.numel()]

    def _fp32(self, hidden: Tensor, logits: Tensor) -> None:
        if hidden.is_cuda:
            torch.mm(hidden, self.weight.t(), out_dtype=torch.float32, out=logits)
        else:
            for start in range(0, logits.shape[1], _SLICE):
                some = slice(start, start + _SLICE)
                logits[:, some] = hidden.float() @ self.weight[some].t().float()
        if self.bias is not None:
            logits += self.bias


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


class Gradients:
    """Where the gradients of hidden states, head and bias gather; what is not wanted stays empty."""

    def __init__(self, head: Head, wanted: list[bool]) -> None:
        vocabulary, width = head.weight.shape
        self.head, self.first = head, True
        hidden = head.hidden
        self.hidden = (
            torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else hidden.new_empty(0)
        )
        rows = (0, 0)
        if wanted[1]:
            half = (vocabulary + 1) // 2
            rows = (half, vocabulary - half) if head.weight.dtype.itemsize == 2 else (vocabulary, 0)
        dtype = wide(hidden)
        self.halves = [head.weight.new_empty((n, width), dtype=dtype) for n in rows]
        self.bias = head.weight.new_zeros(vocabulary if wanted[2] else 0, dtype=dtype)

    @property
    def wanted(self) -> bool:
        """Whether there is any."""
        return any(tensor.numel() for tensor in (self.hidden, self.bias, *self.halves))

    def add(self, at: Tensor, hidden: Tensor, dlogits: Tensor) -> None:
        """The two GEMMs of a chunk."""
        if self.hidden.numel():
            self.hidden.view(-1, hidden.shape[-1]).index_copy_(0, at, dlogits @ self.head.weight)
        start = 0
        for half in self.halves:
            if half.numel():
                _accumulate(half, dlogits[:, start : start + half.shape[0]], hidden, self.first)
                start += half.shape[0]
        if self.bias.numel():
            self.bias += dlogits.sum(0, dtype=self.bias.dtype)
        self.first = False

    def done(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """hidden, the two halves, bias: undivided, and 0 where no chunk was."""
        if self.first:
            for half in self.halves:
                half.zero_()
        return self.hidden, self.halves[0], self.halves[1], self.bias


def _accumulate(total: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """``total += a.T @ b`` (``=`` the first time) with total [V, H] in float32 or wider, a [M, V], b [M, H]."""
    beta = 0 if first else 1
    if a.dtype == total.dtype:
        total.addmm_(a.t(), b, beta=beta)
    elif a.is_cuda:
        torch.addmm(total, a.t(), b, beta=beta, out_dtype=total.dtype, out=total)
    else:  # no such GEMM on a CPU: widen a slice of the vocabulary at a time
        b = b.to(total.dtype)
        for start in range(0, total.shape[0], _SLICE):
            some = slice(start, start + _SLICE)
            total[some].addmm_(a[:, some].t().to(total.dtype), b, beta=beta)


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


def rows_of(head: Head, token_ids: Tensor, mask: Tensor, settings: LossSettings, slots: int = STATE_SLOTS) -> Rows:
    """Of all tokens, their state 0."""
    state = torch.zeros(slots, token_ids.numel(), dtype=wide(head.hidden), device=mask.device)
    return Rows(token_ids, mask, settings, head.implementation, state)


def statistics(head: Head, token_ids: Tensor, mask: Tensor, settings: LossSettings) -> Tensor:
    """State [5, N * T] of all tokens, 0 where masked."""
    rows = rows_of(head, token_ids, mask, settings)
    for at, _, logits, _ in head.chunks(mask):
        rows.statistics(logits, at)
    return rows.state


def statistics_backward(head: Head, rows: Rows, grad: Tensor, wanted: list[bool]) -> Gradients:
    """What dl/dlogp and dl/dH, slots of ``grad`` [5, N * T], make of hidden states, head and bias."""
    gradients, c, h = Gradients(head, wanted), grad[LOGP].contiguous(), grad[ENTROPY].contiguous()
    for at, hidden, logits, out in head.chunks(rows.mask):
        rows.gradient(logits, at, c, h, out)
        gradients.add(at, hidden, out)
    return gradients


def losses(
    head: Head, batch: Batch, objective: Objective, settings: LossSettings, wanted: list[bool]
) -> tuple[Tensor, dict[str, Tensor], Gradients]:
    """The undivided loss, sums of metrics and gradients of a token-level objective, in one pass over the chunks."""
    gradients = Gradients(head, wanted)
    fused = head.implementation == "triton" and isinstance(objective, GRPORank) and objective.fusible
    rows = rows_of(head, batch.token_ids, batch.mask, settings, TERM_SLOTS if fused else STATE_SLOTS)
    state = rows.state
    c, h = state.new_zeros(2, 0 if fused else state.shape[1])
    total, sums = state.new_zeros(()), dict[str, Tensor]()
    for at, hidden, logits, out in head.chunks(batch.mask):
        if fused:
            rows.launch(logits, index=at, statistics=True, term=batch, out=out if gradients.wanted else None)
        else:
            rows.statistics(logits, at)
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
