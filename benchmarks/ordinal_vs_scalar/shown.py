"""Tables and the plot of the page, from the JSON alone."""

from __future__ import annotations

from typing import Any

from benchmarks.ordinal_vs_scalar.judge import VOICES
from benchmarks.ordinal_vs_scalar.mappings import MAPPINGS
from benchmarks.ordinal_vs_scalar.report import BASELINE
from benchmarks.significance import holm

Rows = list[list[str]]


def accuracy(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: accuracy of a mapping under each voice at equal steps."""
    rows = [[f"`{mapping}`", *(_plus_minus(one["accuracy"]) for one in _of(found, mapping))] for mapping in MAPPINGS]
    return ["", *VOICES], rows


def sampled(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: sampled accuracy at equal steps, the rate chosen by it."""
    names = _with(found, "by_sampled")
    rows = [[f"`{m}`", *(_plus_minus(one["accuracy"]) for one in _of(found, m, "by_sampled"))] for m in names]
    return ["", *VOICES], rows


def at_equal_kl(found: dict[str, Any], part: str = "equal_kl") -> tuple[list[str], Rows]:
    """Head and rows: accuracy at equal KL and, in brackets, points above ``zscore``."""
    less, rows = _differences(found, part), []
    for mapping in _with(found, part):
        cells = [f"{one['accuracy'][0]:.1f}" for one in _of(found, mapping, part)]
        if mapping in less:
            cells = [f"{cell} ({points})" for cell, points in zip(cells, less[mapping], strict=True)]
        rows.append([f"`{mapping}`", *cells])
    return ["", *VOICES], rows


def differences(found: dict[str, Any], part: str = "equal_steps") -> tuple[list[str], Rows]:
    """Head and rows: points above ``zscore`` at equal steps, paired; bold where Holm's correction leaves them."""
    rows = [[f"`{mapping}`", *cells] for mapping, cells in _differences(found, part).items()]
    return ["less `zscore`", *VOICES], rows


def at_one_rate(found: dict[str, Any], voice: str = "clean") -> tuple[list[str], Rows]:
    """Head and rows: points above ``zscore`` where both have one rate, greedy and sampled."""
    names = [name for name in _with(found, "at_one_rate") if name != BASELINE]
    rates = list(found["table"][f"{BASELINE}/{voice}"]["at_one_rate"])
    columns = [(what, rate) for what in ("accuracy", "sampled") for rate in rates]
    cells = [[found["table"][f"{name}/{voice}"]["at_one_rate"][rate][what] for what, rate in columns] for name in names]
    words = _told(cells)
    head = [f"{'greedy' if what == 'accuracy' else what}, {1e3 * float(rate):g}" for what, rate in columns]
    return ["less `zscore`", *head], [[f"`{name}`", *row] for name, row in zip(names, words, strict=True)]


def rates(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: the rates chosen by greedy and by sampled accuracy, in thousandths; a star at the grid's ends."""
    rows = []
    for mapping in MAPPINGS:
        cells = [found["table"][f"{mapping}/{voice}"] for voice in VOICES]
        other = [f", {_rate(c['by_sampled'])}" if "by_sampled" in c else "" for c in cells]
        rows.append([f"`{mapping}`", *(f"{_rate(c)}{o}" for c, o in zip(cells, other, strict=True))])
    return ["rate, thousandths", *VOICES], rows


def longer(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: three times the steps, rates tuned again; greedy and sampled, points above ``zscore``, rate."""
    keys = list(found["longer"])
    parts = ("equal_steps", "by_sampled")
    others = [key for key in keys if not key.startswith(f"{BASELINE}/")]
    less = dict(zip(others, _told([[found["longer"][key][part] for part in parts] for key in others]), strict=True))
    rows = []
    for key in keys:
        cells = [f"`{key.split('/')[0]}`"]
        for place, part in enumerate(parts):
            one = found["longer"][key][part]
            cells += [_plus_minus(one["accuracy"]), less[key][place] if key in less else "", _rate(one)]
        rows.append(cells)
    return [
        "",
        *(f"{what}{more}" for what in ("greedy", "sampled") for more in ("", ", less `zscore`", ", rate")),
    ], rows


def ends(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: KL from the warm start behind the last step, nats an answer; and words of an answer."""
    rows = []
    for mapping in MAPPINGS:
        cells = [f"{found['table'][f'{mapping}/{voice}']['kl'][0]:.2f}" for voice in VOICES]
        words = [f"{found['table'][f'{mapping}/{voice}']['words'][0]:.2f}" for voice in ("clean", "length")]
        rows.append([f"`{mapping}`", *cells, *words])
    return ["", *(f"KL, {voice}" for voice in VOICES), "words, clean", "words, length"], rows


def _with(found: dict[str, Any], part: str) -> list[str]:
    return [name for name in MAPPINGS if part in found["table"][f"{name}/clean"]]


def _of(found: dict[str, Any], mapping: str, part: str = "equal_steps") -> list[dict[str, Any]]:
    return [found["table"][f"{mapping}/{voice}"][part] for voice in VOICES]


def _differences(found: dict[str, Any], part: str) -> dict[str, list[str]]:
    """Points above the baseline, of each other mapping under each voice."""
    names = [name for name in _with(found, part) if name != BASELINE]
    return dict(zip(names, _told([_of(found, name, part) for name in names]), strict=True))


def _told(cells: list[list[dict[str, Any]]]) -> Rows:
    """Differences of a table, bold where Holm's correction over all of its cells leaves them."""
    bold = iter(holm([cell["p"] for row in cells for cell in row]))
    words = [[_plus_minus(cell["less_zscore"], "+") for cell in row] for row in cells]
    return [[f"**{word}**" if next(bold) else word for word in row] for row in words]


def _rate(one: dict[str, Any]) -> str:
    return f"{1e3 * one['rate']:.3g}{'*' if one['at_the_edge'] else ''}"


def _plus_minus(pair: Any, sign: str = "") -> str:
    mean, half = pair
    return f"{mean:{sign}.1f} ± {half:.1f}"


def plot(found: dict[str, Any], path: str) -> None:
    """Above, validation accuracy against the rate; below, test accuracy at the best rate; a column for each voice."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(VOICES), figsize=(18, 7), sharey="row")
    for (above, below), voice in zip(axes.T, VOICES, strict=True):
        for number, mapping in enumerate(MAPPINGS):
            tuned = found["tuning"].get(f"{mapping}/{voice}")
            if tuned:
                values = [100 * value for value in tuned.values()]
                above.semilogx([float(rate) for rate in tuned], values, marker=".", color=f"C{number}", label=mapping)
            mean, half = found["table"][f"{mapping}/{voice}"]["equal_steps"]["accuracy"]
            below.errorbar(number, mean, half, fmt="o", capsize=3, color=f"C{number}")
        above.set(title=voice, xlabel="learning rate", xlim=(2.5e-5, 1e-2))
        below.axhline(found["warm_start"][0], color="grey", linewidth=0.8)
        below.set_xticks(range(len(MAPPINGS)), MAPPINGS, rotation=60, ha="right")
    axes[0, 0].set_ylabel("validation accuracy, %")
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[1, 0].set_ylabel("test accuracy at the best rate, %\n(line: warm start)")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
