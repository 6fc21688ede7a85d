"""The line that says what goes on: literal rows by a clock that is set, on 80 columns and in a log file."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from typing import Any

import pytest

from orlaif import stages
from orlaif.stages import Stage, stage, told, under_way
from orlaif.status_line import CLEAR, Head, StatusLine, awaited, duration, row, stages_text

MAIN = threading.main_thread().ident or 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def under(name: str, began: float = 0.0, done: int = 0, **settings: Any) -> Stage:
    known = {"of": None, "unit": "", "behind": False, "thread": MAIN, "expected_s": None}
    return Stage(name, began=began, done=done, **known | settings)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (80, "1:20"), (3599.6, "1:00:00"), (7384, "2:03:04")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("one", "now", "text"),
    [
        (under("rollout"), 0.9, "rollout"),
        (under("rollout"), 3.2, "rollout 3 s"),
        (under("rollout", expected_s=4.2), 3.2, "rollout 3 of 5 s"),
        (under("rollout", expected_s=4.2), 7.2, "rollout 7 s"),  # later than the last time
        (under("judge", of=32, unit="groups", done=12), 4.0, "judge 12 of 32 groups, 4 s"),
        (under("judge", of=32, unit="groups", done=12, expected_s=9.0), 4.0, "judge 12 of 32 groups, 4 of 9 s"),
        (under("reading a.jsonl", unit="rows", done=1200), 2.0, "reading a.jsonl 1200 rows, 2 s"),
        (under("judge", of=32, unit="groups", done=12), None, "judge 12 of 32 groups"),
    ],
)
def test_what_is_awaited(one: Stage, now: float | None, text: str) -> None:
    assert awaited(one, now) == text


def test_stages_of_several_threads() -> None:
    rollout, judge = under("rollout", thread=2, expected_s=5.0), under("judge", of=8, unit="groups", done=3, thread=3)
    waiting, decoding = under("data"), under("decoding", of=4, unit="prompts", done=1, thread=4, behind=True)
    nested = [under("win rate", of=64, unit="prompts", done=16), under("greedy answers", of=32, unit="tokens at most")]
    assert stages_text([[under("policy")], [rollout], [judge]], 3.0) == (
        "policy 3 s + rollout 3 of 5 s + judge 3 of 8 groups, 3 s"
    )
    assert stages_text([[under("policy")], [decoding]], 3.0) == "policy 3 s"
    assert stages_text([[waiting], [decoding], [decoding]], 3.0) == "data 3 s + decoding 1 of 4 prompts, 3 s"
    assert stages_text([nested], 3.0) == "win rate 16 of 64 prompts: greedy answers 0 of 32 tokens at most, 3 s"
    assert stages_text([[under("judge")], [judge]], 3.0) == "judge 3 of 8 groups, 3 s"  # the same, counted elsewhere
    assert stages_text([nested], 3.0, outer_too=False) == "greedy answers 0 of 32 tokens at most, 3 s"
    assert (
        stages_text([[under("asking the judge once more")], [judge]], 3.0, outer_too=False)
        == "judge 3 of 8 groups, 3 s"
    )
    assert stages_text([], 3.0) == ""


def test_a_row_of_80_columns_leaves_metrics_out_and_never_more() -> None:
    head = Head(text="step 3 of 100", metrics=[("kl", "0.013"), ("mean_score", "0.52"), ("rate", "0.1")], left_s=80)
    awaited = "judge 12 of 32 groups, 4 of 9 s"
    assert row(head, awaited, None) == (
        "step 3 of 100 | judge 12 of 32 groups, 4 of 9 s | kl 0.013  mean_score 0.52  rate 0.1 | 1:20 left"
    )
    assert row(head, awaited, 79) == "step 3 of 100 | judge 12 of 32 groups, 4 of 9 s | kl 0.013 | 1:20 left"
    assert row(head, f"a long name of a win rate: {awaited}", 79, awaited) == row(head, awaited, 79)
    assert (
        row(head, f"win: {awaited}", 69, awaited) == "step 3 of 100 | win: judge 12 of 32 groups, 4 of 9 s | 1:20 left"
    )
    assert row(head, "a" * 80, 40) == "aaaaaaaaaaaaaaaaaaaaaaaaaaaa | 1:20 left"
    assert row(Head(left_s=0.4), "policy", 79) == "policy | <1 s left"
    assert row(Head(), "", 79) == ""


def test_a_stage_is_whole_before_an_epoch_and_metrics_are_said() -> None:
    text, brief = "epoch 1 of 4, step 3 of 3, validating 1 of 1", "step 3 of 3, validating"
    head = Head(text=text, brief=brief, metrics=[("val/win_rate", "0.5")], left_s=11)
    decoding = "decoding 3 of 100 prompts, 4 s"
    assert row(head, "data", 90) == f"{text} | data | val/win_rate 0.5 | 0:11 left"
    assert row(head, decoding, 100) == f"{text} | {decoding} | 0:11 left"
    assert row(head, decoding, 79) == f"{brief} | {decoding} | 0:11 left"
    assert row(head, decoding, 50) == f"{decoding} | 0:11 left"


def test_a_terminal_shows_what_has_changed_alone() -> None:
    stream, now = Terminal(), [0.0]
    line = StatusLine(stream, "orlaif fit", clock=lambda: now[0], columns=30)
    line.draw()
    line.draw()
    assert stream.getvalue() == f"{CLEAR}orlaif fit\r"
    line.head = lambda _: Head(text="é step 7 of 9", metrics=[("kl", "0.5"), ("entropy", "1.25")], left_s=3)
    line.draw()
    assert stream.getvalue().split(CLEAR)[-1] == "? step 7 of 9 | 0:03 left\r"
    line.keep(Head(text="7 steps", metrics=[("kl", "0.5"), ("entropy", "1.25")]))
    assert stream.getvalue().endswith(f"{CLEAR}orlaif: 7 steps | kl 0.5\n")
    line.draw()
    line.end()
    line.draw()
    assert stream.getvalue().endswith(f"left\r{CLEAR}")


def test_what_others_print_goes_above(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    log = logging.getLogger("tests.status_line")
    handler = logging.StreamHandler(stream)
    log.addHandler(handler)
    line = StatusLine(stream, "working", columns=80)
    with line.running():
        line.draw()
        log.warning("a warning")
        line.draw()
        sys.stderr.write("half")
        line.draw()  # not into another's line
        sys.stderr.write(" a line\n")
    log.removeHandler(handler)
    assert sys.stderr is stream
    assert handler.stream is stream
    shown = f"{CLEAR}working\r{CLEAR}"
    assert stream.getvalue().startswith(f"{shown}a warning\n{shown}half a line\n")


def test_a_pipe_gets_a_line_now_and_then_and_none_when_nothing_changed() -> None:
    stream, now, text = io.StringIO(), [0.0], ["step 1 of 9"]
    line = StatusLine(stream, clock=lambda: now[0])
    line.head = lambda when: Head(text=text[0], left_s=100 - when)
    now[0] = 9.0
    line.draw()
    assert stream.getvalue() == ""  # a recipe is still being read: its mistake is to be the only line
    line.speaks, told = True, []
    for when in range(9, 51):
        now[0] = float(when)
        text[0] = f"step {min(3, when - 8)} of 9"
        line.draw()
        told += stream.getvalue().splitlines()[len(told) :]
    assert told == ["orlaif: 0:09 step 1 of 9 | 1:31 left", "orlaif: 0:19 step 3 of 9 | 1:21 left"]


def test_a_pipe_gets_a_first_line_within_ten_seconds_whatever_is_awaited() -> None:
    stream, now = io.StringIO(), [0.0]
    line = StatusLine(stream, "orlaif fit", clock=lambda: now[0])
    with stage("loading libraries"):
        for second in range(11):
            assert stream.getvalue() == ""
            now[0] = float(second)
            line.draw()
    assert stream.getvalue() == "orlaif: 0:10 orlaif fit | loading libraries\n"
    line.head = lambda _: Head(text="step 1 of 9", waits="optimizer")
    now[0] = 20.0
    line.draw()
    assert stream.getvalue().endswith("\norlaif: 0:20 step 1 of 9 | optimizer\n")  # no stage says what is awaited


def test_stages_are_those_of_their_threads_and_end_with_them() -> None:
    seen: list[list[list[str]]] = []

    def look() -> None:
        seen.append([[one.name for one in thread] for thread in under_way()])

    def other() -> None:
        with stage("on a thread"):
            look()

    with stage("outer"), stage("inner", 3, "parts") as inner:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        inner.advance(2)
        assert inner.done == 2
    look()
    assert seen == [[["outer", "inner"], ["on a thread"]], []]
    assert [under_way()[0][0].done for _ in told("ab", "letters")] == [0, 1]
    with pytest.raises(ValueError), stage("fails"):
        raise ValueError
    assert under_way() == []
    broken = stage("broken off").__enter__()
    stages.forget()
    assert under_way() == []
    del broken


def test_a_stage_costs_little() -> None:
    """A step of the demo takes 150 ms, and has some twenty stages and a hundred counts: 0.1 % would be 150 us."""
    start = time.process_time()
    for _ in range(1000):
        with stage("one") as one:
            one.advance()
    assert time.process_time() - start < 1.0  # 1 ms each; on an idle machine 4 us
