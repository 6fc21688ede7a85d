"""What fills the sentences about mappings: points above ``zscore``, with intervals, from ``ordinal_vs_scalar.json``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.figures.results import load
from benchmarks.ordinal_vs_scalar.shown import differences
from orlaif.advantages import dcg

Figures = Callable[[], tuple[object, ...]]


def _found() -> dict[str, Any]:
    return load("ordinal_vs_scalar")


def _points(*cells: str) -> Figures:
    """Points above ``zscore`` of each ``mapping/voice/part``."""

    def figures() -> tuple[object, ...]:
        found = []
        for cell in cells:
            mapping, voice, part = cell.split("/")
            mean, half = _found()["table"][f"{mapping}/{voice}"][part]["less_zscore"]
            found.append(f"{mean:+.1f} ± {half:.1f}")
        return tuple(found)

    return figures


def _shares(*cells: str) -> Figures:
    """Mean accuracy of each ``mapping/voice/part``."""

    def figures() -> tuple[object, ...]:
        parts = [cell.split("/") for cell in cells]
        return tuple(_found()["table"][f"{m}/{voice}"][part]["accuracy"][0] for m, voice, part in parts)

    return figures


def _longer(part: str) -> Figures:
    def figures() -> tuple[object, ...]:
        mean, half = _found()["longer"]["dcg/clean"][part]["less_zscore"]
        return (f"{mean:+.1f} ± {half:.1f}",)

    return figures


def _warm_start() -> tuple[object, ...]:
    mean, half = _found()["warm_start"]
    return f"{mean:.1f} ± {half:.1f}", _found()["warm_start_sampled"][0]


def _settings() -> tuple[object, ...]:
    words, found = {3: "three", 7: "Seven"}, _found()
    return tuple(words[len(found[key])] for key in ("rates", "tuning_seeds"))


def _seeds() -> tuple[object, ...]:
    return ({16: "sixteen"}[len(_found()["seeds"])],)


def _choice() -> tuple[object, ...]:
    """What another rate is worth to ``zscore``, which learns the same under both voices."""
    table = _found()["table"]
    clean, rescaled = (table[f"zscore/{voice}"]["sampled"]["accuracy"][0] for voice in ("clean", "rescaled"))
    return (rescaled - clean,)


def _length() -> tuple[object, ...]:
    cell = _found()["table"]["zscore/length"]
    return cell["by_sampled"]["accuracy"][0], cell["at_one_rate"]["0.001"]["sampled"]["accuracy"][0]


def _lone() -> tuple[object, ...]:
    """Advantages of a lone best and a lone worst answer in a group of eight under ``dcg``."""
    best = torch.tensor([[0] + [1] * 7])
    return float(dcg(best)[0, 0]), -float(dcg(1 - best)[0, 0])


def _far() -> tuple[object, ...]:
    table = _found()["table"]
    least = min(table[f"ndcg_penalty, text, reversed/{voice}"]["kl"][0] for voice in ("clean", "length"))
    return (int(least // 10 * 10),)


def _leads(mapping: str, part: str) -> str:
    """Under how many voices it is ahead of ``zscore`` by more than noise, after the correction; in words."""
    (cells,) = [row[1:] for row in differences(_found(), part)[1] if row[0] == f"`{mapping}`"]
    number = sum(cell.startswith("**+") for cell in cells)
    return f"{_NUMBERS[number]} of {_NUMBERS[len(cells)]}" if part == "equal_steps" and number else _NUMBERS[number]


_NUMBERS = {0: "none", 3: "three", 5: "five", 9: "nine"}


def _default() -> tuple[object, ...]:
    """Leads of ``dcg``, greedy and sampled, with the points under *clean*; then those of ``borda``."""
    cells = [f"{mapping}/clean/{part}" for mapping in ("dcg", "borda") for part in ("equal_steps", "by_sampled")]
    points = _points(*cells)()
    assert _leads("borda", "equal_steps") == _leads("borda", "by_sampled")
    return (
        _leads("dcg", "equal_steps"),
        points[0],
        _leads("dcg", "by_sampled"),
        points[1],
        _leads("borda", "equal_steps"),
        *points[2:],
    )


def _literal() -> tuple[object, ...]:
    """Greedy accuracy that the literal penalty leaves at best on validation, the rates tried, the warm start's."""
    tuning = [rates for name, rates in _found()["tuning"].items() if name.endswith("literal/clean")]
    best = max(value for rates in tuning for value in rates.values())
    return 100 * best, _NUMBERS[len(tuning[0])], _found()["warm_start"][0]


#: Of docs/concepts/mathematics.md, on why the default is what it is.
DEFAULT: tuple[tuple[str, Figures], ...] = (
    ("ahead of `ZScore` by greedy answers under {} voices of the judge ({} points under *clean*) and by sampled ones "
     "under {} ({}); `Borda` is under {}, by either ({} and {})", _default),
    ("leaves at most {:.1f} % of greedy answers right there, at any of {} rates, where the warm start has {:.1f} %",
     _literal),
)  # fmt: skip

WORDS: tuple[tuple[str, Figures], ...] = (
    ("{} rates, a factor of two apart, on {} tuning seeds", _settings),
    ("{} other seeds", _seeds),
    ("mean over {} seeds with its 95 % interval", _seeds),
    ("The warm start has {}, and {:.1f} of sampled answers", _warm_start),
    ("sampled accuracy at those differs by {:.1f} points", _choice),
    ("by {} points over `zscore` under *clean* and {} under *length*",
     _points("dcg/clean/equal_steps", "dcg/length/equal_steps")),
    ("at equal KL too ({} under *clean*, {} under *heavy*", _points("dcg/clean/equal_kl", "dcg/heavy/equal_kl")),
    ("after three times the steps ({})", _longer("equal_steps")),
    ("ahead by {} under *clean*, {} under *quantised* and {} under *length*",
     _points("dcg/clean/by_sampled", "dcg/quantised/by_sampled", "dcg/length/by_sampled")),
    ("after three times the steps by {}", _longer("by_sampled")),
    ("Under *rescaled*, {}, the lead does not outlast the correction, and under *heavy*, {}, there is none",
     _points("dcg/rescaled/by_sampled", "dcg/heavy/by_sampled")),
    ("its {:.1f} % at 2 thousandths is less than the {:.1f} % that eight of the seeds have at 1", _length),
    ("({} under *clean*), by no more than noise after the correction", _points("dcg/clean/equal_kl_sampled")),
    ("greedy ({}) and sampled ({})", _points("borda/clean/equal_steps", "borda/clean/by_sampled")),
    ("they lose by greedy answers ({}) and not by sampled ones ({})",
     _points("borda/length/equal_steps", "borda/length/by_sampled")),
    ("under *quantised* {} greedy and {} sampled",
     _points("odrpo/quantised/equal_steps", "odrpo/quantised/by_sampled")),
    ("a lone best answer is pushed up by {:.2f} and a lone worst one down by {:.2f}", _lone),
    ("`mean_centered` loses {} points to `zscore` under *rescaled* by greedy answers and {} by sampled ones, `rloo` {}",
     _points("mean_centered/rescaled/equal_steps", "mean_centered/rescaled/by_sampled", "rloo/rescaled/equal_steps")),
    ("Under *heavy* it loses {} by sampled answers", _points("mean_centered/heavy/by_sampled")),
    ("{:.1f} % are right with `dcg`, {:.1f} % with `borda` and {:.1f} % with `zscore`",
     _shares("dcg/heavy/by_sampled", "borda/heavy/by_sampled", "zscore/heavy/by_sampled")),
    ("`dcg` is behind `zscore` by sampled answers ({})", _points("dcg/length/sampled")),
    ("with {:.1f} % of sampled answers right: it has learned",
     _shares("ndcg_penalty, appendix, reversed/clean/sampled")),
    ("whose runs end more than {} nats away", _far),
)  # fmt: skip
