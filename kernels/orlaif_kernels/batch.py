"""What surrounds an objective: constants of the tokens, weights and the normaliser, checked once, and the sums.

Shapes: N completions, T tokens. Packed: N = 1, and ``cu_seqlens`` says where each of C completions begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, _SetExcludeDispatchKeyGuard

from orlaif_kernels.advantage import check_groups, rank_advantage
from orlaif_kernels.arguments import LossSettings, RatioLevel, check_tensors, number, one_of, readable
from orlaif_kernels.arguments import Mapping as MappingName
from orlaif_kernels.objective import METRICS, GRPORank, Objective, loss_weights
from orlaif_kernels.rows import ENTROPY


class Packing:
    """Completions one after the other in a row [1, T], and the padded [C, L] of which some sums are taken."""

    def __init__(self, cu_seqlens: Tensor, num_tokens: int) -> None:
        if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or len(cu_seqlens) < 2:
            raise ValueError(
                f"cu_seqlens are {cu_seqlens.dtype}{list(cu_seqlens.shape)}; they must be int32 or int64[C + 1]"
            )
        lengths = cu_seqlens.long().diff()
        ends = (int(cu_seqlens[0]), int(cu_seqlens[-1]))  # here the host waits
        if ends != (0, num_tokens) or int(lengths.min()) < 0:
            raise ValueError(f"cu_seqlens go from {ends[0]} to {ends[1]}; they must rise from 0 to {num_tokens} tokens")
        self.completion = torch.repeat_interleave(lengths, output_size=num_tokens)
        self.shape = (len(lengths), max(1, int(lengths.max())))
        start = cu_seqlens.long()[:-1][self.completion]
        self.at = self.completion * self.shape[1] + torch.arange(num_tokens, device=cu_seqlens.device) - start

    def pad(self, x: Tensor) -> Tensor:
        """[1, T] -> [C, L], 0 where nothing is."""
        return x.new_zeros(self.shape).flatten().index_put((self.at,), x.flatten()).view(self.shape)

    def unpad(self, x: Tensor) -> Tensor:
        """[C, L] -> [1, T]."""
        return x.flatten()[self.at].unsqueeze(0)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """All that a loss knows of the tokens but the policy: constants, checked, 0 where masked.

    Args:
        token_ids: int[N, T].
        mask: bool[N, T], the tokens that count: of completions that teach something.
        advantages: f32[N, T] (f64 for f64 logits), as are the next four.
        weights: how much each token's term counts, before the normaliser.
        normalizer: 0-dim; NaN where it is not positive though tokens count.
        old_logps: or None.
        ref_logps: or None.
        packing: or None.
    """

    token_ids: Tensor
    mask: Tensor
    advantages: Tensor
    weights: Tensor
    normalizer: Tensor
    old_logps: Tensor | None
    ref_logps: Tensor | None
    packing: Packing | None

    def loss(
        self, objective: Objective, logps: Tensor, entropy: Tensor, at: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The undivided loss, 0-dim, and sums of metrics, from statistics [N, T], or [M] of the tokens ``at``."""
        level = getattr(objective, "level", "token")
        one_of("objective.level", level, RatioLevel)
        mask, weights = self.mask, self.weights
        values = {"old": self.old_logps, "reference": self.ref_logps, "advantage": self.advantages}
        if at is not None:
            mask, weights = mask.flatten()[at], weights.flatten()[at]
            values = {name: None if x is None else x.flatten()[at] for name, x in values.items()}
        values |= {"logp": logps, "entropy": entropy}
        move = None
        if at is None and level == "sequence" and self.packing is not None:
            move = self.packing.pad
        elif at is None and level == "token" and not isinstance(objective, GRPORank):
            move = partial(torch.masked_select, mask=mask)  # no other objective is known to be safe where masked
        if move is not None:
            values = {name: None if x is None else move(x) for name, x in values.items()}
            mask, weights = move(mask), move(weights)
        logp, entropies = values["logp"], values["entropy"]
        assert logp is not None
        assert entropies is not None
        if values["old"] is None:
            values["old"] = logp.detach()
        made = objective(**values, mask=mask)
        terms, metrics = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
        for name, value in {"terms": terms, **metrics}.items():
            if not isinstance(value, Tensor) or value.is_complex():
                raise ValueError(f"the objective's {name} are {type(value).__name__}; they must be a real Tensor")
            if value.shape != logp.shape:
                raise ValueError(
                    f"the objective's {name} have shape {tuple(value.shape)}; logp has {tuple(logp.shape)}"
                )
        sums = {name: x.detach().where(mask, 0.0).sum() for name, x in {"entropy": entropies, **metrics}.items()}
        return (terms.where(mask, 0.0) * weights).sum(), sums

    def derivatives(
        self, objective: Objective, logps: Tensor, entropy: Tensor, at: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """The same, and dl/dlogp and dl/dH by autograd, also inside an operator, where PyTorch keeps autograd out."""
        with _SetExcludeDispatchKeyGuard(DispatchKey.AutogradFunctionality, False), torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (logps, entropy)]
            loss, sums = self.loss(objective, leaves[0], leaves[1], at)
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else (None, None)
        c, h = (torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True))
        return loss.detach(), sums, c.detach(), h.detach()

    def finish(self, loss: Tensor, sums: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its metrics from their sums."""
        tokens = self.mask.sum().clamp(min=1)
        return loss, {"loss": loss.detach(), **{name: value / tokens for name, value in sums.items()}}

    @property
    def tensors(self) -> list[Tensor]:
        """As an operator's schema can hold them; a packing does not matter to a token-level loss."""
        values = [getattr(self, field.name) for field in fields(self) if field.name != "packing"]
        return [self.weights.new_empty(0) if x is None else x for x in values]

    @staticmethod
    def of_tensors(tensors: list[Tensor]) -> Batch:
        """The inverse."""
        old, ref = (x if x.numel() else None for x in tensors[-2:])
        return Batch(
            **dict(zip((field.name for field in fields(Batch)), tensors[:-2], strict=False)),  # type: ignore[arg-type]
            old_logps=old,
            ref_logps=ref,
            packing=None,
        )

    def of_state(self, state: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The undivided loss and the sums of metrics that the Triton kernel left in its state."""
        entropy, _, _, loss, kl, low, high, runaway = state[ENTROPY:].sum(-1).unbind()
        sums = {"entropy": entropy, **dict(zip(METRICS, (kl, low, high, low + high, runaway), strict=True))}
        if self.ref_logps is None:
            del sums["kl"]
        return loss.clone(), sums


def prepare(
    token_ids: Tensor, mask: Tensor, settings: LossSettings, wide: torch.dtype, given: Mapping[str, Any]
) -> Batch:
    """Check and complete what a loss is given (``keywords.LossArguments``), in the dtype ``wide``."""
    advantages: Any = given.get("advantages")
    ranks, ref_logps = given.get("ranks"), given.get("ref_logps")
    if settings.kl_coef != 0 and ref_logps is None:
        raise ValueError(f"kl_coef is {settings.kl_coef} but ref_logps is missing; pass them or set kl_coef to 0")
    check_tensors(**{name: given.get(name) for name in ("advantages", "ranks", "cu_seqlens")})
    if (advantages is None) == (ranks is None):
        raise ValueError("pass exactly one of advantages and ranks")
    one_of("mapping", given.get("mapping", "dcg"), MappingName)
    packing = None
    if (cu_seqlens := given.get("cu_seqlens")) is not None:
        if token_ids.shape[0] != 1:
            raise ValueError(f"token_ids have shape {tuple(token_ids.shape)}; with cu_seqlens they must be [1, T]")
        packing = Packing(cu_seqlens, token_ids.shape[1])
    completions = token_ids.shape[0] if packing is None else packing.shape[0]

    def of_tokens(x: Tensor) -> Tensor:  # [N] or [C] -> [N, T]
        return x.unsqueeze(-1).expand_as(token_ids) if packing is None else x[packing.completion].unsqueeze(0)

    if ranks is not None:
        advantages, teaches = _of_ranks(ranks, mask, packing, completions, given)
        mask = mask & of_tokens(teaches)
    if advantages.shape == (completions,):
        advantages = of_tokens(advantages)
    elif advantages.shape != token_ids.shape:
        raise ValueError(
            f"advantages have shape {tuple(advantages.shape)}; they must be [{completions}] or {list(token_ids.shape)}"
        )
    normalizer, length = given.get("normalizer"), given.get("max_completion_length")
    length = length if normalizer is None else length or 1
    weights, count = loss_weights(mask if packing is None else packing.pad(mask), settings.loss_type, length, wide)
    weights = weights if packing is None else packing.unpad(weights)

    def constant(x: Tensor | None) -> Any:
        return None if x is None else x.detach().to(wide).masked_fill(~mask, 0.0).contiguous()

    if (token_weights := given.get("token_weights")) is not None:
        weights = weights * constant(token_weights)
    return Batch(
        token_ids=token_ids.contiguous(),
        mask=mask.contiguous(),
        advantages=constant(advantages),
        weights=weights.contiguous(),
        normalizer=count.clamp(min=1) if normalizer is None else _divisor(normalizer, mask, wide),
        old_logps=constant(given.get("old_logps")),
        ref_logps=constant(ref_logps),
        packing=packing,
    )


def _of_ranks(
    ranks: Tensor, mask: Tensor, packing: Packing | None, completions: int, given: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Advantages of completions, and which of them teach something."""
    if (group_size := given.get("group_size")) is None:
        raise ValueError("ranks need group_size")
    check_groups(ranks, group_size)
    if ranks.numel() != completions:
        raise ValueError(f"ranks have {ranks.numel()} entries for {completions} completions")
    mapping, old_logps, sequence_logps = given.get("mapping", "dcg"), given.get("old_logps"), None
    if mapping == "zscore":
        raise ValueError("mapping 'zscore' needs scores: pass advantages=rank_advantage(..., scores=scores)[0]")
    if mapping == "ndcg_penalty":
        if old_logps is None:
            raise ValueError("mapping 'ndcg_penalty' needs old_logps, the log-probs when the answers were sampled")
        counted = old_logps.detach().masked_fill(~mask, 0.0)
        sequence_logps = (counted if packing is None else packing.pad(counted)).sum(-1).view(ranks.shape)
    how = {"mapping": mapping, "sequence_logps": sequence_logps, "implementation": given.get("implementation", "auto")}
    advantages, weights = rank_advantage(ranks, group_size=group_size, **how)
    return advantages.flatten(), weights.flatten() != 0


def _divisor(normalizer: Tensor | float, mask: Tensor, wide: torch.dtype) -> Tensor:
    """A 0-dim tensor on the device, without waiting for the device: 1 where nothing counts, NaN where it is wrong."""
    if not isinstance(normalizer, Tensor):
        normalizer = torch.full((), number("normalizer", normalizer), dtype=wide, device=mask.device)
    if normalizer.numel() != 1:
        raise ValueError(f"normalizer has shape {tuple(normalizer.shape)}; it is one number for the whole loss")
    value = normalizer.detach().to(mask.device, wide).reshape(())
    good, nothing = (value > 0) & value.isfinite(), ~mask.any() & (value == 0)
    if readable(value) and readable(mask) and not bool(good | nothing):
        raise ValueError(f"normalizer is {float(value)}; it must be positive and finite")
    return value.where(good, torch.nan).where(~nothing, 1.0)
