"""Sentences of the pages that hold figures: each is filled from its JSON and must stand in its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures.results import load, plus_minus

REPO = Path(__file__).parents[2]
PRETRAINED = "docs/tutorials/pretrained.md"
README, BENCHMARKS, MAPPINGS = "README.md", "docs/benchmarks/index.md", "docs/benchmarks/mappings.md"


@dataclass(frozen=True)
class Claim:
    """Words with places for figures, and what fills them."""

    page: str
    words: str
    figures: Callable[[], tuple[object, ...]]

    @property
    def text(self) -> str:
        """The sentence as its JSON has it."""
        return self.words.format(*self.figures())


def missing(claim: Claim) -> str:
    """The sentence if its page does not have it, wherever its lines break; empty if it does."""
    page = " ".join((REPO / claim.page).read_text(encoding="utf-8").split())
    return "" if claim.text in page else claim.text


def _step_ratios() -> tuple[object, ...]:
    """How many times longer the duplicated batch takes than the faster of both shared layouts, least and most."""
    ratios = []
    for point in load("step_cpu")["steps"][:-1]:  # the last goes duplicated in parts, for memory
        times = {name: row["median_ms"] for name, row in point["results"].items()}
        ratios.append(times["duplicate"] / min(times["mask"], times["split"]))
    return min(ratios), max(ratios)


def _rollout() -> tuple[object, ...]:
    most = load("step_cpu")["rollouts"][-1]["results"]
    return most["shared"]["median_ms"] / 1e3, most["duplicate (transformers)"]["median_ms"] / 1e3


def _demo_row(kind: str) -> Callable[[], tuple[object, ...]]:
    def figures() -> tuple[object, ...]:
        summary = load("demo")["seeds"]["0"]
        start = summary["accuracy_warm_start"] if kind == "all" else summary["by_kind_warm_start"][kind]
        end = summary["accuracy_rlaif"] if kind == "all" else summary["by_kind_rlaif"][kind]
        return kind, 100 * start, 100 * end, 100 * (end - start)

    return figures


def _controls(one: str, other: str) -> str:
    rows = load("demo_controls")["accuracy"].values()
    return plus_minus([100 * (row[one] - row[other]) for row in rows])


def _smallest_gain() -> tuple[object, ...]:
    rows = load("demo_controls")["accuracy"].values()
    return (min(100 * (row["rlaif"] - row["warm start"]) for row in rows),)


def _staleness() -> tuple[object, ...]:
    rows = load("pipeline_accuracy")["found"].values()
    return (plus_minus([100 * (row["staleness 0"] - row["staleness 1"]) for row in rows]),)


def _oracles() -> tuple[object, ...]:
    results = load("oracle_cost")["results"]
    return tuple(results[name]["ratio"] for name in ("HTTP", "pairwise", "listwise", "ranker"))


def _prefix() -> tuple[object, ...]:
    report = load("demo_prefix")
    times = report["median_ms"]
    return times["duplicate"]["time/policy"] / times["shared"]["time/policy"], report["predicted_policy"]


def _dynamic() -> tuple[object, ...]:
    """Points at equal steps, and tokens until plain training's accuracy as shares of what plain training takes."""
    points: list[float] = []
    sampled: list[float] = []
    trained: list[float] = []
    for seed in load("dynamic_sampling")["seeds"].values():
        plain, dynamic = seed["all groups"], seed["dynamic sampling"]
        points.append(100 * (dynamic["test"] - plain["test"]))
        least = plain["curve"][-1]["accuracy"]
        for what, shares in (("sampled", sampled), ("trained", trained)):
            until = [next(p[what] for p in arm["curve"] if p["accuracy"] >= least) for arm in (dynamic, plain)]
            shares.append(until[0] / until[1])
    return plus_minus(points), plus_minus(sampled, digits=2), plus_minus(trained, digits=2)


def _pairwise_gain() -> tuple[object, ...]:
    rows = load("preference_ranker")["seeds"].values()
    return (plus_minus([100 * (row["pairwise"]["rlaif"] - row["pairwise"]["warm start"]) for row in rows]),)


def _actors() -> tuple[object, ...]:
    found = load("pipeline_actors")["found"]
    return found["1 actors"], found["2 actors"]


def _points(mapping: str, *voices: str, how: str = "equal_steps") -> Callable[[], tuple[object, ...]]:
    """Points of a mapping above ``zscore`` at equal steps or at equal KL, under each voice."""

    def figures() -> tuple[object, ...]:
        table = load("ordinal_vs_scalar")["table"]
        pairs = [table[f"{mapping}/{voice}"][how]["less_zscore"] for voice in voices]
        return tuple(f"{mean:+.1f} ± {half:.1f}" for mean, half in pairs)

    return figures


def _warm_start() -> tuple[object, ...]:
    report = load("ordinal_vs_scalar")
    mean, half = report["warm_start"]
    return f"{mean:.1f} ± {half:.1f}", report["warm_start_sampled"][0]


def _sampled(mapping: str, voice: str) -> Callable[[], tuple[object, ...]]:
    """Percent of sampled answers that are right behind the last step."""
    return lambda: (load("ordinal_vs_scalar")["table"][f"{mapping}/{voice}"]["sampled"][0],)


def _longer() -> tuple[object, ...]:
    mean, half = load("ordinal_vs_scalar")["longer"]["dcg/clean"]["equal_steps"]["less_zscore"]
    return (f"{mean:+.1f} ± {half:.1f}",)


CLAIMS = (
    Claim(README, "{:.1f} to {:.0f} x less time than the duplicated batch", _step_ratios),
    *(
        Claim(README, "{} {:.1f}% {:.1f}% {:+.1f}p", _demo_row(kind))
        for kind in ("color", "count", "direction", "order", "shape", "all")
    ),
    Claim(BENCHMARKS, "A rollout of 32 tokens for 16 answers takes {:.1f} s, with `generate` of transformers on the "
          "duplicated batch {:.1f} s", _rollout),
    Claim(BENCHMARKS, "Ranks did better by {} points", lambda: (_controls("rlaif", "scores (zscore)"),)),
    Claim(BENCHMARKS, "the smallest gain of any seed is {:.1f} points", _smallest_gain),
    Claim(BENCHMARKS, "At equal steps staleness 1 costs {} points", _staleness),
    Claim(BENCHMARKS, "At equal steps it is {} points better, and better in every seed. It is not cheaper here: to "
          "plain training's accuracy it samples {} times as many tokens, and trains on {} times as many", _dynamic),
    Claim(BENCHMARKS, "The pairwise ranker gave {} points", _pairwise_gain),
    Claim(BENCHMARKS, "One actor samples {:.0f} answers a second, two sample {:.0f}", _actors),
    Claim(BENCHMARKS, "costs {:.1f} x less with `HTTPJudge` (a server that takes 50 ms), {:.0f} x less with "
          "`PairwiseJudge`, {:.1f} x with `ListwiseJudge` and {:.0f} x with `PreferenceRanker`", _oracles),
    Claim(MAPPINGS, "The warm start has {}, and {:.1f} of sampled answers", _warm_start),
    Claim(MAPPINGS, "ahead of `zscore` under every voice, by {} points under *clean* and {} under *length*",
          _points("dcg", "clean", "length")),
    Claim(MAPPINGS, "At equal KL it is ahead by {} and, under *quantised*, by {}",
          _points("dcg", "clean", "quantised", how="equal_kl")),
    Claim(MAPPINGS, "After three times the steps it is {} ahead", _longer),
    Claim(MAPPINGS, "Linear ranks (`borda`) are level with a tuned `zscore` under *clean* ({}), *heavy* ({}) and "
          "*quantised* ({}), and lose to it under *length* ({})",
          _points("borda", "clean", "heavy", "quantised", "length")),
    Claim(MAPPINGS, "`odrpo` is level with it under *clean* ({}) and *heavy* ({}), behind under *length* ({}), and in "
          "its own setting ahead by no more than noise ({})",
          _points("odrpo", "clean", "heavy", "length", "quantised")),
    Claim(MAPPINGS, "at equal KL by a little ({})", _points("odrpo", "quantised", how="equal_kl")),
    Claim(MAPPINGS, "`mean_centered` loses {} points to `zscore` under *rescaled*",
          _points("mean_centered", "rescaled")),
    Claim(MAPPINGS, "`rloo` {}", _points("rloo", "rescaled")),
    Claim(MAPPINGS, "`mean_centered` is ahead of `zscore` there ({})", _points("mean_centered", "quantised")),
    Claim(MAPPINGS, "of sampled answers {:.1f} % are right with `zscore`", _sampled("zscore", "heavy")),
    Claim(MAPPINGS, "{:.1f} % of sampled answers right", _sampled("ndcg_penalty, appendix, reversed", "clean")),
    Claim(BENCHMARKS, "the policy's part of a step is {:.1f} x faster than duplicated (operations: {:.1f}", _prefix),
)  # fmt: skip
