"""From a batch of prompts to an :class:`Experience`: rollout, log-probs, ranking, advantages.

Everything is [P, g, T] or [P, g], where g completions of each group make up a part (``microbatch``); the whole group is
ranked and weighed before it is cut.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from orlaif_kernels.arguments import Mapping
from torch import Tensor

from orlaif.advantages import DCG, Advantage, Borda
from orlaif.distributed.sync import exchange, raise_together
from orlaif.losses import loss_weights
from orlaif.oracles import Asked
from orlaif.stages import stage
from orlaif.training.ahead import Answered, Sampled
from orlaif.training.divided_rollout import sample_together
from orlaif.training.in_flight import candidate_groups
from orlaif.training.judged import JudgedBatch, show, whole
from orlaif.training.lengths import by_length, cut_off, note_answers
from orlaif.training.log_probs import LogProbs, log_probs
from orlaif.training.measured import measured
from orlaif.training.metrics import note_completions, note_order_consistency
from orlaif.training.mismatch import importance_weights
from orlaif.training.notes import elapsed
from orlaif.types import Completions, LearnsRates, Measured, OracleError, Prompt, PromptBatch, Ranking

if TYPE_CHECKING:
    from orlaif.training.rlaif import OracleRLAIF

#: What the kernels have themselves, so that rank, advantage and loss are one operation. Not the classes derived from
#: these, which may be something else.
KERNEL_MAPPINGS: dict[type[Advantage], Mapping] = {DCG: "dcg", Borda: "borda"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one forward and backward pass needs: g completions of each of P groups.

    Args:
        completions: [P, g, T].
        mask: bool[P, g, T], the tokens that count: not those of a group that was not ranked.
        advantages: f32[P, g], or f32[P, g, T].
        ranks: i64[P, g], where the loss can make the same advantages of them itself (:func:`ranks_for_loss`).
        weights: f32[P, g, T], what each token's term is multiplied by, where another engine sampled.
        reference: f32[P, g, T], log-probs of the frozen reference, where the loss has a KL term.
        old: f32[P, g, T], log-probs of the policy that sampled, where several updates use this rollout; where there
            are none the ratio is exactly 1.
    """

    completions: Completions
    mask: Tensor
    advantages: Tensor
    ranks: Tensor | None
    weights: Tensor | None
    reference: Tensor | None
    old: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Experience:
    """A batch after its rollout: all that updates need.

    Args:
        batch: P prompts.
        completions: [P, G, T], their groups, whole.
        parts: the same, cut; where processes share prompts, those of this process.
        normalizer: 0-dim, what all tokens count together.
    """

    batch: PromptBatch
    completions: Completions
    parts: tuple[Part, ...]
    normalizer: Tensor


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A batch behind its ranking.

    Args:
        batch: P prompts.
        completions: [P, G, T].
        ranking: of P groups, on the CPU; all -1 where nothing was asked.
        advantages: f32[P, G], or f32[P, G, T].
    """

    batch: PromptBatch
    completions: Completions
    ranking: Ranking
    advantages: Tensor


def make_experience(
    module: OracleRLAIF, batch: PromptBatch, generators: list[torch.Generator], batch_idx: int, counts: bool
) -> Experience:
    """Sample, ask the oracle, take log-probs while it thinks, rank, and weigh.

    All processes must call it, or :func:`rank_together` where they have nothing to rank.

    Args:
        module: whose policy, rollout, oracle and mapping are used, and which notes metrics and times.
        batch: P prompts.
        generators: one for each prompt.
        batch_idx: of the training step.
        counts: False for a stand-in, which the oracle is not asked about and which carries no weight.

    Raises:
        OracleError: on all processes, see :func:`rank_together`.
    """
    sampled = sample(module, batch, generators, batch_idx, counts)
    logps = log_probs(module, batch, sampled.completions)
    return as_experience(module, judge(module, batch, sampled, batch_idx, counts, logps), logps)


def sample(
    module: OracleRLAIF, batch: PromptBatch, generators: list[torch.Generator], batch_idx: int, counts: bool
) -> Sampled:
    """Completions of P prompts, of now or in flight, and the oracle at work on them; as :func:`make_experience`."""
    if module.ahead is None:
        sampled = sampled_now(module, batch, generators, counts)
    else:
        sampled = module.ahead.take(batch, batch_idx, counts)
    module.notes.note("time/rollout", sampled.seconds)
    for name, number in module.rollout.take_counts().items():
        module.notes.note(f"rollout/{name}", number)
    return sampled


def judge(
    module: OracleRLAIF,
    batch: PromptBatch,
    sampled: Sampled,
    batch_idx: int,
    counts: bool,
    logps: LogProbs | None = None,
) -> Ranked:
    """What the oracle says of the groups, and what that is worth; noted and shown. As :func:`make_experience`.

    Args:
        module: as there.
        batch: P prompts.
        sampled: of them.
        batch_idx: of the training step.
        counts: False for a stand-in.
        logps: of the completions, where they are known already.
    """
    completions, asked = sampled.completions, sampled.asked
    with borrowed(module):
        ranking = rank_together(module, asked, batch.prompts)
    if module.sequence is not None:
        ranking = module.sequence.from_first(None if ranking is None else ranking.to("cpu"))
    if ranking is None:
        ranking = Ranking(ranks=torch.full(completions.ids.shape[:2], -1))
    said, ranking = ranking, by_length(module, ranking, completions)
    advantages = module.advantages(ranking, completions)
    known = (None, None) if logps is None else (whole(logps.reference), whole(logps.old))
    reference, trainer = (module.of_all(one, completions.group_size) for one in known)
    if counts and module.leads:
        note_completions(module, completions, ranking, advantages)
        note_answers(module, completions)
        show(
            module,
            JudgedBatch(
                batch=batch,
                completions=completions,
                ranking=ranking,
                advantages=advantages,
                step=module.global_step,
                epoch=module.current_epoch,
                batch_idx=batch_idx,
                reference=reference,
                trainer=trainer,
                exchanges=() if asked is None else asked.exchanges,
                seconds={"rollout": sampled.seconds, "oracle": 0.0 if asked is None else asked.seconds},
            ),
        )
    every = module.order_consistency_every_n_steps
    if every and module.global_step % every == 0:
        with borrowed(module), stage("asking the judge once more"):
            if counts and module.leads and not ranking.failures:
                groups = candidate_groups(batch, completions, module.policy.answer_format)
                note_order_consistency(module, groups, said, batch_idx)
    if module.oracle.borrows_policy:  # which has taken the place of this batch's features where it was asked
        module.policy.features.forget()
    return Ranked(batch=batch, completions=completions, ranking=ranking, advantages=advantages)


def as_experience(module: OracleRLAIF, ranked: Ranked, logps: LogProbs) -> Experience:
    """This process's of the groups with their weights, cut into parts."""
    completions, ranking = ranked.completions, ranked.ranking
    # A group that was not ranked at all carries no weight: neither in the sum nor in what it is divided by.
    is_ranked = (ranking.ranks >= 0).any(-1).to(completions.device)
    mask = completions.mask & is_ranked[:, None, None]
    if module.truncated == "mask":
        mask &= ~cut_off(completions, module.policy.eos_ids).unsqueeze(-1)
    parts, old = module.own_completions(completions).split(module.microbatch), logps.old
    weights: list[Tensor | None] = [None] * len(parts)
    if module.rollout.correction is not None:
        weights = list(importance_weights(module, completions, old, mask).split(module.microbatch or mask.shape[1], 1))
    mask, advantages = module.own(mask, fill=False), module.own(ranked.advantages)
    if module.num_updates == 1:  # the ratio is exactly 1
        old = [None] * len(parts)
    sizes = [part.group_size for part in parts]
    ranks = ranks_for_loss(module, ranking) if len(parts) == 1 and module.sequence is None else None
    cut = zip(parts, mask.split(sizes, 1), advantages.split(sizes, 1), weights, logps.reference, old, strict=True)
    return Experience(
        batch=ranked.batch,
        completions=completions,
        parts=tuple(
            Part(completions=c, mask=m, advantages=a, ranks=ranks, weights=w, reference=r, old=o)
            for c, m, a, w, r, o in cut
        ),
        normalizer=loss_weights(mask.flatten(0, 1), module.loss.loss_type, module.rollout.sampling.max_new_tokens)[1],
    )


def sampled_now(module: OracleRLAIF, batch: PromptBatch, generators: list[torch.Generator], counts: bool) -> Sampled:
    """Completions of P prompts by the policy of this moment, and the oracle at work on them, if they count."""
    start = time.perf_counter()
    with stage("rollout"):
        completions = sample_together(module, lambda b, own: module.rollout(module.policy, b, own), batch, generators)
    seconds = elapsed(start, module.device)
    groups = candidate_groups(batch, completions, module.policy.answer_format)
    asked = Asked(module.oracle, groups, module.on_oracle_failure) if counts and module.leads else None
    return Sampled(completions=completions, asked=asked, seconds=seconds)


def ranks_for_loss(module: OracleRLAIF, ranking: Ranking) -> Tensor | None:
    """Ranks i64[P, G] that a loss may be handed in place of advantages.

    That is where the kernels have the recipe's mapping, and all answers of a group count or none does: with ranks, the
    kernels leave out an answer that has none and a group without order, whose KL counts here.
    """
    ranks = ranking.ranks.cpu()
    ordered = (ranks >= 0).all(-1) & (ranks.amax(-1) > ranks.amin(-1))
    alike = bool((ordered | (ranks < 0).all(-1)).all())
    return ranking.ranks.to(module.device) if type(module.advantage) in KERNEL_MAPPINGS and alike else None


def borrowed(module: OracleRLAIF) -> AbstractContextManager[None]:
    """The policy's weights are whole inside, where the oracle uses them."""
    return module.policy.gathered() if module.oracle.borrows_policy else nullcontext()


def rank_together(
    module: OracleRLAIF, asked: Asked | Answered | None, prompts: Sequence[Prompt] = ()
) -> Ranking | None:
    """What the oracle answered, its cost noted; None for a process that asked nothing. All processes must call it.

    Args:
        module: whose data is told of pass rates, where its order follows them.
        asked: the oracle behind the groups.
        prompts: of the groups.

    Raises:
        OracleError: on all processes, what failed on any; or groups of all of them past
            ``on_oracle_failure.max_rate``.
    """
    ranking, error = None, None
    data = getattr(module.trainer, "datamodule", None)
    learner = data if isinstance(data, LearnsRates) and data.learns_rates else None
    rates: list[Measured] = []
    if asked is not None:
        try:
            ranking = asked.result()
            rates = measured(prompts, ranking, type(module.oracle).__name__) if learner else []
        except Exception as problem:  # whatever it is, the other processes must not wait for this one
            error = problem
    raise_together(error)
    if ranking is not None and asked is not None:
        module.notes.note("time/oracle", asked.seconds)
        module.notes.note("time/oracle_wait", asked.waited)
        for name, number in asked.counts.items():
            module.notes.note(f"oracle/{name}", number)
    failures = () if ranking is None else ranking.failures
    last = (failures[-1].oracle, failures[-1].prompt_id, failures[-1].cause) if failures else None
    everyone = exchange((0 if ranking is None else len(ranking.ranks), len(failures), last, rates))
    if learner is not None:
        learner.note_rates([one for *_, of_process in everyone for one in of_process])
    totals = module.notes.totals
    groups = totals["groups"] = totals.get("groups", 0) + sum(asked for asked, *_ in everyone)
    failed = totals["failed_groups"] = totals.get("failed_groups", 0) + sum(number for _, number, *_ in everyone)
    module.log("oracle/failure_rate", failed / max(1, groups))
    for failure in (failure for _, _, failure, _ in everyone if failure is not None):
        module.on_oracle_failure.check(int(failed), int(groups), OracleError(*failure))
    return ranking
