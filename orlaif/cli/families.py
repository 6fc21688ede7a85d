"""The subcommand ``orlaif families``: what works on this machine, found out on a tiny random model of each family.

Each is built (``orlaif.tiny``), loaded and checked as a run would (``orlaif.policy``), in float32 on the CPU. What a
family's real weights change is rounding alone, so that the layout is the one that a run finds; a window or a sparse
index that a longer prompt exceeds is in the tiny models too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from orlaif.near_misses import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one family.

    Args:
        family: model type of transformers.
        loads: whether a policy of it can be trained.
        layout: of a group: ``shared``, ``fork`` or ``duplicate``; empty where it does not load.
        rollout: ``shared`` where a group decodes behind one cache of its prompt, ``own`` where each completion has one.
        fused_head: ``exact``, with the scale and soft cap of its logits; or why not.
        reason: how exact the layout is and why no cheaper one serves; or why it does not load.
    """

    family: str
    loads: bool
    layout: str = ""
    rollout: str = ""
    fused_head: str = ""
    reason: str = ""


#: Letters of an error that a line has room for.
LONGEST = 300


def surveyed(family: str) -> Row:
    """A family, tried; whatever goes wrong is its reason."""
    from orlaif.policy import Policy
    from orlaif.tiny import families, tiny_model

    if family not in families():
        return Row(family=family, loads=False, reason="orlaif.tiny makes no model of it to try")
    try:
        with tempfile.TemporaryDirectory(prefix="orlaif-families-") as folder:
            choice = Policy(tiny_model(family, Path(folder)), dtype="float32").load().choice
    except Exception as error:  # of a library or a model that we do not know
        said = " ".join(str(error).split()) or type(error).__name__
        return Row(family=family, loads=False, reason=said if len(said) <= LONGEST else f"{said[:LONGEST]} ...")
    assert choice is not None
    head = choice.head
    scale = [f"scale {head.scale:.3g}"] if abs(head.scale - 1) > 1e-6 else []
    cap = [f"soft cap {head.softcap:g}"] if head.softcap is not None else []
    return Row(
        family=family,
        loads=True,
        layout=choice.layout,
        rollout="shared" if choice.shares_cache else "own",
        fused_head=head.reason or ", ".join(["exact", *scale, *cap]),
        reason=choice.said,
    )


def known() -> list[str]:
    """Model types of the installed transformers that see videos and speak, and those that ``orlaif.tiny`` makes."""
    from transformers.models.auto import modeling_auto, video_processing_auto

    from orlaif.tiny import families

    speaking = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()
    return sorted({*families(), *(video_processing_auto.VIDEO_PROCESSOR_MAPPING_NAMES.keys() & speaking)})


@contextmanager
def quietly() -> Iterator[None]:
    """Without what transformers and orlaif say of each model."""
    from transformers.utils import logging as transformers_logging

    log, level = logging.getLogger("orlaif"), transformers_logging.get_verbosity()
    before = log.level
    log.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def about() -> str:
    """The versions that a table is of."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")]
    return f"{', '.join(versions)}; tiny random models, float32 on the CPU"


HEADINGS = ("family", "loads", "layout", "rollout", "fused head", "reason")


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts, in the order of the headings."""
    return (row.family, "yes" if row.loads else "no", row.layout, row.rollout, row.fused_head, row.reason)


def as_text(rows: Sequence[Row]) -> str:
    """Columns for a terminal; the last is as long as it is."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [*(max(len(line[i]) for line in lines) for i in range(len(HEADINGS) - 1)), 0]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def as_markdown(rows: Sequence[Row]) -> str:
    """A table of the documentation."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines)


def as_json(rows: Sequence[Row]) -> str:
    """For programs."""
    return json.dumps({"about": about(), "families": [asdict(row) for row in rows]}, indent=2)


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {"text": as_text, "markdown": as_markdown, "json": as_json}


def main(arguments: Sequence[str]) -> int:
    """The subcommand; 0 where every family asked for loads, else 1; 0 for the whole table."""
    parser = argparse.ArgumentParser(
        prog="orlaif families",
        description="Which families of video-language models the installed transformers has, and how orlaif trains "
        "each: its layout of a group (docs: prompt paid once), how it decodes, whether its head may be fused with the "
        "loss. Found out on a tiny random model of each, in seconds.",
    )
    parser.add_argument("--family", nargs="+", metavar="NAME", help="these model types only")
    parser.add_argument("--format", choices=list(FORMATS), default="text")
    given = parser.parse_args(arguments)
    with quietly():
        names = known()
        for name in given.family or ():
            if name not in names:
                raise ValueError(f"--family is {name!r}, which is no video family here{did_you_mean(name, names)}")
        rows = [surveyed(name) for name in given.family or names]
    print(FORMATS[given.format](rows))
    if given.format != "json":
        print(f"\n{about()}")
    return 0 if given.family is None or all(row.loads for row in rows) else 1
