"""A function for each table of the pages: from its JSON to Markdown, with the line that names its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import demo_controls
from benchmarks.figures import kernels, mappings, plan_families, pretrained, real_size
from benchmarks.figures.results import load, markdown, plus_minus, source
from benchmarks.significance import t_bound

Rows = list[list[str]]


def demo() -> str:
    """The demo of one seed, by kind of question."""
    summary = load("demo")["seeds"]["0"]
    start, end = summary["by_kind_warm_start"], summary["by_kind_rlaif"]
    kinds = {kind: (start[kind], end[kind]) for kind in sorted(start)}
    kinds["all"] = (summary["accuracy_warm_start"], summary["accuracy_rlaif"])
    rows = [[k, f"{100 * a:.1f} %", f"{100 * b:.1f} %", f"{100 * (b - a):+.1f}"] for k, (a, b) in kinds.items()]
    return _with_source(["", "warm start", "RLAIF", "gain"], rows, "demo")


def think() -> str:
    """The demo in tags over seeds."""
    seeds = load("demo_think")["seeds"]
    rows: Rows = []
    for name, key in (("warm start", "accuracy_warm_start"), ("RLAIF", "accuracy_rlaif")):
        values = [100 * row[key] for row in seeds.values()]
        rows.append([name, *(f"{value:.1f}" for value in values), plus_minus(values)])
    gains = [100 * row["gain"] for row in seeds.values()]
    rows.append(["gain", *(f"{gain:+.1f}" for gain in gains), plus_minus(gains, "+")])
    return _with_source(["", *(f"seed {seed}" for seed in seeds), "mean, 95 % interval"], rows, "demo_think")


def grounding() -> str:
    """The demo of grounding over seeds: mIoU before and after, beside the best answer that looks at no clip."""
    found = load("grounding_demo")["found"]
    rows: Rows = []
    for seed, row in found.items():
        figures = row["constant_miou"], row["before"]["miou"], row["after"]["miou"]
        gain, seconds = figures[2] - figures[1], row["core_seconds_by_stage"]["rlaif"]
        rows.append([seed, *(f"{figure:.3f}" for figure in figures), f"{gain:+.3f}", f"{seconds:.0f}"])
    head = ["seed", "best constant answer", "warm start", "RLAIF", "gain", "core seconds of RLAIF"]
    return _with_source(head, rows, "grounding_demo")


def dynamic() -> str:
    """Accuracy and tokens with and without dynamic sampling: means over seeds with 95 % intervals."""
    summary = load("dynamic_sampling")["summary"]
    rows: Rows = []
    for arm, row in summary.items():
        cells = [f"{100 * row['test']['mean']:.1f} ± {100 * row['test']['half_width']:.1f}"]
        for what in (
            "sampled in all",
            "trained in all",
            "sampled until plain accuracy",
            "trained until plain accuracy",
        ):
            cell = row[what]
            half = f" ± {cell['half_width'] / 1e3:.0f}" if cell["half_width"] is not None else ""
            missed = f" ({cell['seeds']} of {cell['of']} seeds)" if cell["seeds"] < cell["of"] else ""
            cells.append("never" if cell["mean"] is None else f"{cell['mean'] / 1e3:.0f}{half}{missed}")
        rows.append([arm, *cells])
    head = ["", "test accuracy, %", "sampled", "trained", "sampled until", "trained until"]
    return _with_source(head, rows, "dynamic_sampling")


def controls() -> str:
    """What the demo's gain is made of."""
    accuracy = {int(seed): row for seed, row in load("demo_controls")["accuracy"].items()}
    return f"{demo_controls.table(accuracy)}\n\n{source('demo_controls')}"


def pipeline_steps() -> str:
    """Seconds of a step beside its stages."""
    found = load("pipeline_steps")["found"]
    rows = [[name, *(f"{row[key]:.2f}" for key in ("step", "longest", "sum"))] for name, row in found.items()]
    return _with_source(["", "step", "longest stage", "sum of stages"], rows, "pipeline_steps")


def pipeline_accuracy() -> str:
    """What older weights cost."""
    found = load("pipeline_accuracy")["found"]
    rows: Rows = []
    for arm in ("warm start", "staleness 0", "staleness 1"):
        values = [100 * row[arm] for row in found.values()]
        rows.append([arm, *(f"{value:.1f}" for value in values), f"{sum(values) / len(values):.1f}"])
    return _with_source(["", *(f"seed {seed}" for seed in found), "mean"], rows, "pipeline_accuracy")


def step() -> str:
    """A training step by layout, and how many times longer than ``split``."""
    rows: Rows = []
    for point in load("step_cpu")["steps"]:
        results = point["results"]
        cells = [f"{point['prompt']}, {point['answer']}, {point['group']}", f"{point['predicted']:.1f} x"]
        for name, digits in (("duplicate", 1), ("mask", None), ("split", None), ("trl", 1), ("prefix_grouper", 2)):
            row = results[name]
            words = f"{row['median_ms'] / 1e3:.2f} s, {row['peak_bytes'] / 1e9:.1f} GB"
            if digits:
                words += f" ({row['median_ms'] / results['split']['median_ms']:.{digits}f} x)"
            cells.append(f"**{words}**" if name == "split" else words)
        rows.append(cells)
    head = ["prompt, answer, answers", "predicted", "duplicated", "`mask`", "`split`", "TRL", "prefix_grouper"]
    return _with_source(head, rows, "step_cpu")


def families() -> str:
    """Times as long duplicated as in a row, of models with other layers than full attention."""
    files = {"Qwen3.5": "step_qwen3_5_cpu", "Gemma 4, windows of 256": "step_gemma4_cpu"}
    rows: dict[str, list[str]] = {}
    for file in files.values():
        for point in load(file)["families"]:
            cells = rows.setdefault(f"{point['prompt']}, {point['answer']}, {point['group']}", [])
            times = {name: row["median_ms"] for name, row in point["results"].items()}
            ratio = times["duplicate"] / times["fork"]
            cells += [f"{point['measured']:.2f}, {point['predicted']:.2f}", f"{ratio:.2f}"]
    head = ["prompt, answer, group"]
    for family in files:
        head += [f"{family}: measured, predicted", "with `fork`"]
    return _with_source(head, [[name, *cells] for name, cells in rows.items()], *files.values())


def static() -> str:
    """The binaries of loss and gradient of a row, before the round and after."""
    reports = [load("static_before"), load("static")]
    rows: Rows = []
    for dtype, vocabulary in (("bf16", 152064), ("bf16", 262144), ("fp32", 152064)):
        for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
            cells = [f"{dtype}, {vocabulary:,}", target]
            for report in reports:
                wanted = ("row_kernel: loss and gradient", dtype, vocabulary, target)
                keys = ("kernel", "dtype", "vocabulary", "target")
                cells.append(_binary(next(k for k in report["kernels"] if tuple(k.get(x) for x in keys) == wanted)))
            rows.append(cells)
    return _with_source(["dtype, vocabulary", "target", "before", "after"], rows, "static_before", "static")


def judge() -> str:
    """A small language model behind a server as a judge: groups ranked, agreement with the rule, time."""
    rows: Rows = []
    for name, row in load("judge_server")["results"].items():
        ranked = round(row["rankings"] * row["groups"])
        half = None if row["standard_error"] is None else t_bound(ranked - 1) * row["standard_error"]
        tau = "" if half is None else f"{row['tau']:.2f} ± {half:.2f}"
        rows.append([name, f"{ranked} of {row['groups']}", tau, f"{row['seconds_per_group']:.1f}"])
    return _with_source(
        ["asked for", "groups ranked", "tau-b with the rule", "seconds per group"], rows, "judge_server"
    )


def trl() -> str:
    """TRL's GRPOTrainer and orlaif from the same warm starts: each seed, means with intervals, time of a step."""
    report = load("trl_side_by_side")
    rows: Rows = []
    for name, key in (("warm start", "sft"), ("orlaif", "orlaif"), ("TRL", "trl")):
        runs = [run[key] for run in report["runs"].values()]
        accuracy, reward = ([100 * run[what] for run in runs] for what in ("accuracy", "reward"))
        seconds = "" if key == "sft" else f"{report['summary'][key]['seconds_per_step']:.2f} s"
        rows.append([name, *(f"{value:.1f}" for value in accuracy), plus_minus(accuracy), plus_minus(reward), seconds])
    less = report["summary"]["orlaif less trl"]
    cells = [f"{less[what][0]:+.1f} ± {less[what][1]:.1f}" for what in ("accuracy", "reward")]
    rows.append(["orlaif less TRL", *("" for _ in report["runs"]), *cells, ""])
    head = ["", *(f"seed {seed}" for seed in report["runs"]), "right, %", "reward, %", "a step"]
    return _with_source(head, rows, "trl_side_by_side")


#: Bytes of L2, in millions, as the report of the binaries counts them.
_L2_MB = {"sm_80": 40, "sm_90": 50, "sm_100": 126}


def _binary(kernel: dict[str, Any]) -> str:
    if "instructions_per_logit" not in kernel:
        return f"{kernel['registers']} registers"
    instructions = sum(kernel["instructions_per_logit"][:2])  # of the two sweeps; what follows is a variant's
    flight = f"{kernel['in_flight_mb']:.0f} of {_L2_MB[kernel['target']]} MB"
    return (
        f"{instructions:.1f}; {kernel['registers']}; {kernel.get('programs_per_sm', kernel['blocks_per_sm'])}; {flight}"
    )


def loading() -> str:
    """Host memory of processes that load together."""
    rows: Rows = []
    for case, row in load("loading")["cases"].items():
        rows.append([case, *(f"{row[key]:.2f}" for key in ("peak_gb", "peak_anonymous_gb", "end_gb", "python_gb"))])
    head = ["", "peak", "of it without mapped files", "at the end", "Python and libraries, besides"]
    return _with_source(head, rows, "loading")


def before_after() -> str:
    """The torch implementations of two commits, taking turns."""
    report = load("before_after_cpu")
    rows: Rows = []
    for name, sides in report["cases"].items():
        cells = [
            f"{side['median_ms']:.0f} ms [{side['p20_ms']:.0f}, {side['p80_ms']:.0f}], {side['peak_mb']:.0f} MB"
            if (side := sides.get(which))
            else "none"
            for which in ("before", "after")
        ]
        rows.append([name, *cells])
    return _with_source(["", f"before ({report['before']})", "after"], rows, "before_after_cpu")


def rankers() -> str:
    """Oracle-RLAIF against trained rankers of both kinds."""
    rows: Rows = []
    for seed, kinds in load("preference_ranker")["seeds"].items():
        for kind, row in kinds.items():
            start, end = 100 * row["warm start"], 100 * row["rlaif"]
            cells = [f"{100 * row['held-out pair accuracy']:.1f} %", f"{start:.1f} %", f"{end:.1f} %"]
            cells += [f"{end - start:+.1f}", f"{row['core ms per group']:.1f}", f"{row['order consistency']:.2f}"]
            rows.append([seed, kind, *cells])
    head = [
        "seed",
        "ranker",
        "held-out pairs",
        "warm start",
        "RLAIF against it",
        "gain",
        "core ms a group",
        "order kept",
    ]
    return _with_source(head, rows, "preference_ranker")


_CLIPS = {
    "nasa_13013.mp4": "H.264, 480 x 270, 13 s",
    "h265_video.mp4": "H.265, 128 x 128, 1 s",
    "av1_video.mkv": "AV1, 640 x 360, 5 s",
    "testsrc2_vp9.webm": "VP9, 1280 x 720, 1 s",
    "720p, ten minutes": "H.264, 1280 x 720, ten minutes",
}


def decode() -> str:
    """Clips per second of each decoder; the fastest of a row is set off."""
    report = load("decode_cpu")
    columns = {
        "orlaif": "orlaif",
        "transformers (torchcodec)": "transformers, torchcodec",
        "transformers (pyav)": "transformers, PyAV",
        "decord": "decord",
        "pyav": "PyAV",
    }
    rows: Rows = []
    for file, words in _CLIPS.items():
        for frames in (8, 32, 64):
            results = report["results"][f"{file}/{frames}"]
            speeds = [results.get(name, {}).get("clips_per_s") for name in columns]
            best = max(speed for speed in speeds if speed)
            cells = ["-" if not s else f"**{s:.3g}**" if s == best else f"{s:.3g}" for s in speeds]
            rows.append([str(frames), words, *cells])
    return _with_source(["frames", "file", *columns.values()], rows, "decode_cpu")


def bandit() -> str:
    """Where each reading of the paper's penalty leads."""
    rows = [[name, f"{mean:+.2f} ± {half:.2f}"] for name, (mean, half) in load("penalty_bandit")["table"].items()]
    return _with_source(["mapping", "mean quality"], rows, "penalty_bandit")


def _with_source(head: list[str], rows: Rows, *files: str) -> str:
    return f"{markdown(head, rows)}\n\n{source(*files)}"


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "think": think,
    "grounding": grounding,
    "dynamic": dynamic,
    "controls": controls,
    "pipeline-steps": pipeline_steps,
    "pipeline-accuracy": pipeline_accuracy,
    "step": step,
    "families": families,
    "judge": judge,
    "trl": trl,
    "static": static,
    "before-after": before_after,
    "loading": loading,
    "rankers": rankers,
    **mappings.TABLES,
    "decode": decode,
    "bandit": bandit,
    **pretrained.TABLES,
    "real-size": real_size.table,
    "plan-families": plan_families.table,
    "kernels-predicted": kernels.predicted,
    "kernels-cpu": kernels.measured,
}
