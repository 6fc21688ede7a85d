"""Sentences of the pages that hold figures: each is filled from its JSON and must stand in its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import mapping_claims, real_size
from benchmarks.figures.results import load, plus_minus

REPO = Path(__file__).parents[2]
PRETRAINED, RELATED = "docs/tutorials/pretrained.md", "docs/concepts/related_work.md"
FIRST_RUN, MATHEMATICS = "docs/tutorials/first_real_run.md", "docs/concepts/mathematics.md"
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


def _way() -> tuple[object, ...]:
    """Of warm starts, percent right about the way of motion: with an adapter on the tower, and without."""
    return tuple(
        100 * start["by_fact"]["way"] for start in (load("pretrained_unfrozen"), load("pretrained")["warm_start"])
    )


def _pretrained_rule() -> tuple[object, ...]:
    """Percent of facts right before and after, mean over seeds."""
    report = load("pretrained")
    after = [row["rule"]["facts"] for row in report["seeds"].values()]
    assert len(after) == 3
    return 100 * report["warm_start"]["facts"], 100 * sum(after) / len(after)


def _pretrained_ranker() -> tuple[object, ...]:
    """Percent of pairs that the trained ranker orders right: held-out ones, and of the policy's first samples."""
    report = load("pretrained")
    return 100 * report["ranker"]["pair_accuracy"], 100 * report["seeds"]["0"]["ranker"]["order"]["pairs"]


def _pretrained_kl() -> tuple[object, ...]:
    """Points of facts that the rule and the trained ranker gain with a KL term."""
    gains = load("pretrained")["gains"]
    return tuple(gains[arm]["facts"]["mean"] for arm in ("rule-kl", "ranker-kl"))


def _step_by_group(model: str) -> float:
    """How many times longer a step of 16 answers takes than one of 2, in the faster layout."""
    least, most = (
        next(p for p in load("step_cpu")["groups"] if (p["model"], p["group"]) == (model, group)) for group in (2, 16)
    )
    return float(most["results"]["split"]["median_ms"] / least["results"]["split"]["median_ms"])


def _operations() -> float:
    points = {p["group"]: p["multiply_adds_shared"] for p in load("step_cpu")["groups"] if p["model"] == "cpu"}
    return float(points[16] / points[2])


def _step_growth() -> tuple[object, ...]:
    return _step_by_group("cpu"), _operations(), _step_by_group("wide")


def _prefills() -> tuple[object, ...]:
    points = {p["group"]: p["results"]["prefill, shared"]["median_ms"] / 1e3 for p in load("step_cpu")["rollouts"]}
    assert f"{points[2]:.1f}" == f"{points[16]:.1f}"
    return (points[2],)


def _decoding() -> tuple[object, ...]:
    """Share of PyAV's speed on the long file; how much faster PyAV is on a short one, and on the VP9 one."""
    found = load("decode_cpu")["results"]

    def ratio(clip: str, one: str, other: str) -> float:
        return float(found[clip][one]["clips_per_s"] / found[clip][other]["clips_per_s"])

    long, short = "720p, ten minutes/8", "nasa_13013.mp4/8"
    return (
        100 * ratio(long, "orlaif", "pyav"),
        ratio(short, "pyav", "orlaif"),
        ratio("testsrc2_vp9.webm/32", "pyav", "orlaif"),
    )


def _datamodule() -> tuple[object, ...]:
    shares = [100 * (row["ratio"] - 1) for row in load("decode_cpu")["datamodule_against_bare_decoder"].values()]
    return min(shares), max(shares)


def _held_out() -> tuple[object, ...]:
    rows = load("preference_ranker")["seeds"].values()
    shares = [100 * row["listwise"]["held-out pair accuracy"] for row in rows]
    pairs = {f"{100 * row['pairwise']['held-out pair accuracy']:.0f}" for row in rows}
    return min(shares), max(shares), " or ".join(sorted(pairs))


def _split() -> tuple[object, ...]:
    """How many times longer Prefix Grouper takes than ``split``, least and most."""
    results = [point["results"] for point in load("step_cpu")["steps"]]
    ratios = [row["prefix_grouper"]["median_ms"] / row["split"]["median_ms"] for row in results]
    return min(ratios), max(ratios)


def _bandit() -> tuple[object, ...]:
    found = load("penalty_bandit")
    settings = (found[name] for name in ("prompts", "arms", "group", "steps"))
    return *settings, abs(found["start"][0]), found["best"][0], {8: "eight"}[found["seeds"]]


def _demo_source() -> tuple[object, ...]:
    return (load("demo")["commit"],)


def _stages_off() -> tuple[object, ...]:
    off = real_size.percent_off()
    return -min(off), max(off)


CLAIMS = (
    Claim(README, "{:.1f} to {:.0f} x less time than the duplicated batch for a step of a {:.1f} M decoder on CPU "
          "cores",
          lambda: (*_step_ratios(), load("step_cpu")["model"]["parameters"] / 1e6)),
    Claim(README, "Test accuracy on {} questions, greedy, seed {}",
          lambda: next((row["test_questions"], row["seed"]) for row in load("demo")["seeds"].values())),
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
    Claim(BENCHMARKS, "from {:.1f} to {:.1f} % of facts right, mean of three seeds", _pretrained_rule),
    Claim(PRETRAINED, "{:.0f} % right about which way a shape moves, where one in four is chance; with it frozen "
          "{:.0f} %", _way),
    Claim(PRETRAINED, "The trained ranker orders {:.0f} % of held-out pairs as the rule does, but those are of answers "
          "sampled hot, many of them plainly wrong; of the pairs that the policy itself samples at first it orders "
          "{:.0f} % so", _pretrained_ranker),
    Claim(PRETRAINED, "the rule gains {:.1f} points in these 100 steps, the ranker {:.1f}", _pretrained_kl),
    *(Claim(MAPPINGS, words, figures) for words, figures in mapping_claims.WORDS),
    Claim(README, "([figures](benchmarks/results/demo.json) of commit {})", _demo_source),
    Claim(BENCHMARKS, "a step grows by {:.2f} x on this model, where operations grow by {:.2f}, and by {:.2f} x on one",
          _step_growth),
    Claim(BENCHMARKS, "its prefill costs {:.1f} s for 2 answers and for 16", _prefills),
    Claim(BENCHMARKS, "({:.0f} % of PyAV with 8 frames) at half to two thirds of the memory of the next; few frames of "
          "a short H.264 clip come {:.2f} x faster from PyAV, which decodes straight through it, and 32 of the VP9 one "
          "{:.1f} x", _decoding),
    Claim(BENCHMARKS, "a clip takes {:.1f} to {:.1f} % longer than bare", _datamodule),
    Claim(BENCHMARKS, "it orders {:.0f} to {:.0f} % of held-out pairs rightly, where the pairwise one has {} %",
          _held_out),
    Claim(RELATED, "`split` is {:.1f} to {:.1f} x faster", _split),
    Claim(MATHEMATICS, "({} prompts, {} arms, groups of {}, {} steps of one length for every mapping; mean quality "
          "from {:.0f}, of the best arms {:.2f}; {} seeds, 95 % intervals", _bandit),
    *(Claim(MATHEMATICS, words, figures) for words, figures in mapping_claims.DEFAULT),
    Claim(BENCHMARKS, "{:+.0f} % for the 3B's step ({:+.0f} % rollout, {:+.0f} % reference, {:+.0f} % policy) and "
          "{:+.0f} % for the 2B's ({:+.0f}, {:+.0f}, {:+.0f} %)", lambda: tuple(real_size.percent_off())),
    Claim(FIRST_RUN, "by stage it was between {:.0f} % below and {:.0f} % above", _stages_off),
    Claim(BENCHMARKS, "the policy's part of a step is {:.1f} x faster than duplicated (operations: {:.1f}", _prefix),
)  # fmt: skip
