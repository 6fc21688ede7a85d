"""Whether oracle, mapping and group go together: refused where a recipe is read, said once where only a run shows it.

Shapes: P prompts, G completions per prompt, T completion tokens.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from torch import Tensor

from orlaif.advantages import Advantage
from orlaif.oracles import Oracle
from orlaif.types import Ranking

if TYPE_CHECKING:
    from orlaif.training.rlaif import OracleRLAIF

log = logging.getLogger(__name__)

#: Groups that an oracle has ordered before a run speaks of a mapping that gave no answer of theirs an advantage.
ENOUGH = 8


def check_judging(oracle: Oracle, advantage: Advantage, group_size: int) -> None:
    """Refuse what cannot work, as oracle and mapping themselves say, before a model is loaded.

    Raises:
        ValueError: a mapping of scores with an oracle that only ranks, or a group larger than the oracle takes.
    """
    name = type(oracle).__name__
    if advantage.needs_scores and oracle.gives_scores is False:
        raise ValueError(
            f"advantage is {type(advantage).__name__}, which needs an oracle with scores, and {name}, as it is set, "
            "only ranks; use orlaif.advantages.DCG or Borda, or an oracle that gives scores"
        )
    if oracle.most_answers is not None and group_size > oracle.most_answers:
        raise ValueError(f"rollout.group_size is {group_size}; it must be at most {oracle.most_answers} for {name}")


def warn_of_mapping(module: OracleRLAIF) -> None:
    """Once in a run, what the mapping's :attr:`~orlaif.advantages.Advantage.caution` says."""
    if module.global_rank == 0 and module.advantage.caution is not None:
        log.warning("%s", module.advantage.caution)


def warn_of_silence(module: OracleRLAIF, ranking: Ranking, advantages: Tensor) -> None:
    """Once in a run, where the oracle orders groups and the mapping has given no answer of them an advantage.

    Args:
        module: counts such groups.
        ranking: of P groups.
        advantages: f32[P, G] or f32[P, G, T].
    """
    if module.notes.totals.get("groups/taught"):  # it is not silent, and no further step waits for the device to say so
        return
    ranks, silent = ranking.ranks.cpu(), (advantages == 0).flatten(1).all(-1).cpu()
    ordered = ranks.amax(-1) > ranks.masked_fill(ranks < 0, ranks.shape[1]).amin(-1)
    now = {"ordered": int(ordered.sum()), "taught": int((~silent).sum())}
    totals = {name: number + module.notes.totals.get(f"groups/{name}", 0) for name, number in now.items()}
    for name, number in now.items():
        module.notes.count(f"groups/{name}", number)
    if totals["taught"] or totals["ordered"] < ENOUGH or not module.notes.first("silence"):
        return
    said = f"{type(module.advantage).__name__} has given no answer of the first {totals['ordered']:g} groups that "
    said += f"{type(module.oracle).__name__} ordered an advantage, so nothing is learnt"
    if ranking.scores is not None and bool((~ranking.scores.isnan()).any()):
        scores = ranking.scores[~ranking.scores.isnan()]
        said += f" (scores from {float(scores.min()):g} to {float(scores.max()):g})"
    why = module.advantage.why_silent
    log.warning("step %d: %s%s", module.global_step, said, "" if why is None else f"; {why}")
