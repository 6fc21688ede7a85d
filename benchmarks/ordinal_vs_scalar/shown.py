"""Tables and the plot of the page, from the JSON alone."""

from __future__ import annotations

from typing import Any

from benchmarks.ordinal_vs_scalar.judge import VOICES
from benchmarks.ordinal_vs_scalar.mappings import MAPPINGS

Rows = list[list[str]]


def accuracy(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: accuracy of a mapping under each voice at equal steps."""
    rows = [[f"`{mapping}`", *(_plus_minus(one["accuracy"]) for one in _of(found, mapping))] for mapping in MAPPINGS]
    return ["", *VOICES], rows


def at_equal_kl(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: accuracy at equal KL and, in brackets, points above ``zscore``."""
    table, rows = found["table"], []
    voices = [voice for voice in VOICES if "equal_kl" in table[f"zscore/{voice}"]]
    for mapping in MAPPINGS:
        if "equal_kl" in table[f"{mapping}/clean"]:
            both = [table[f"{mapping}/{voice}"]["equal_kl"] for voice in voices]
            less = ["" if mapping == "zscore" else f" ({_difference(one['less_zscore'])})" for one in both]
            rows.append([f"`{mapping}`", *(f"{o['accuracy'][0]:.1f}{d}" for o, d in zip(both, less, strict=True))])
    return ["", *voices], rows


def differences(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: points above ``zscore`` at equal steps, paired; bold where the interval leaves out 0."""
    rows = [
        [f"`{mapping}`", *(_difference(one["less_zscore"]) for one in _of(found, mapping))]
        for mapping in MAPPINGS
        if mapping != "zscore"
    ]
    return ["less `zscore`", *VOICES], rows


def rates(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: the chosen rate in thousandths, a star where it is the grid's first or last."""
    rows = []
    for mapping in MAPPINGS:
        cells = [found["table"][f"{mapping}/{voice}"] for voice in VOICES]
        rows.append([f"`{mapping}`", *(f"{1e3 * c['rate']:.3g}{'*' if c['at_the_edge'] else ''}" for c in cells)])
    return ["rate, thousandths", *VOICES], rows


def longer(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: three times the steps, the rate tuned again; accuracy, points above ``zscore``, rate."""
    rows: dict[str, list[str]] = {}
    voices = []
    for key, reading in found["longer"].items():
        mapping, voice = key.split("/")
        if voice not in voices:
            voices.append(voice)
        both = reading["equal_steps"]
        star = "*" if reading["at_the_edge"] else ""
        rows.setdefault(mapping, [f"`{mapping}`"]).extend(
            [
                _plus_minus(both["accuracy"]),
                "" if mapping == "zscore" else _difference(both["less_zscore"]),
                f"{1e3 * reading['rate']:.3g}{star}",
            ]
        )
    return ["", *(f"{voice}{what}" for voice in voices for what in ("", ", less `zscore`", ", rate"))], [*rows.values()]


def ends(found: dict[str, Any]) -> tuple[list[str], Rows]:
    """Head and rows: KL from the warm start behind the last step, nats an answer; and words of an answer."""
    rows = []
    for mapping in MAPPINGS:
        cells = [f"{found['table'][f'{mapping}/{voice}']['kl'][0]:.2f}" for voice in VOICES]
        words = [f"{found['table'][f'{mapping}/{voice}']['words'][0]:.2f}" for voice in ("clean", "length")]
        rows.append([f"`{mapping}`", *cells, *words])
    return ["", *(f"KL, {voice}" for voice in VOICES), "words, clean", "words, length"], rows


def _of(found: dict[str, Any], mapping: str) -> list[dict[str, Any]]:
    return [found["table"][f"{mapping}/{voice}"]["equal_steps"] for voice in VOICES]


def _difference(pair: Any) -> str:
    words = _plus_minus(pair, "+")
    return f"**{words}**" if abs(pair[0]) > pair[1] else words


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
