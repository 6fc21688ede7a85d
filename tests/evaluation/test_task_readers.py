"""Time spans, boxes, quantities and orders, as models write them, case by case."""

from __future__ import annotations

import time

import pytest

from orlaif.evaluation.boxes import box, box_iou
from orlaif.evaluation.orders import order, pairs_in_order
from orlaif.evaluation.spans import span, span_iou
from orlaif.evaluation.text_metrics import chrf
from orlaif.evaluation.units import Quantity, quantity, relative_error


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("12.5 - 20 s", (12.5, 20)),
        ("from 00:12 to 00:20", (12, 20)),
        ("[12.5, 20]", (12.5, 20)),
        ("between 12 and 20 seconds", (12, 20)),
        ("12s–20s", (12, 20)),
        ("1:02:03-1:03:00", (3723, 3780)),
        ("<12.5 to 20>", (12.5, 20)),
        ("12.5, 20", (12.5, 20)),
        ("1-2 min", (60, 120)),
        ("1 min 5 s to 1 min 30 s", (65, 90)),
        ("between 1 minute and 90 seconds", (60, 90)),
        ("1h to 2h", (3600, 7200)),
        ("00:12.5 --> 00:20.0", (12.5, 20)),
        ("The event happens in the 24.3 - 30.4 seconds.", (24.3, 30.4)),
        ("It starts at 12 s and ends at 20 s.", (12, 20)),
        ("The start time is 0.8 seconds,\nthe end time is 1.1 seconds", (0.8, 1.1)),
        ('{"start": 12.5, "end": 20}', (12.5, 20)),
        ("<think>1 to 2</think><answer>3 - 4</answer>", (3, 4)),
        ("**[3.0, 7.0]**", (3, 7)),
        ("from 3 seconds to 8 seconds, that is 3 - 8 s", (3, 8)),
        ("3 to 5 people, from 12 s to 20 s", (12, 20)),
        ("from 0:05 to 0:12", (5, 12)),
        ("5s-12s", (5, 12)),
        ("00:00:05,000 --> 00:00:12,000", (5, 12)),
        ("[0:05,0:12]", (5, 12)),
        ("starts at 5 s and lasts 7 s", (5, 12)),
        ("starting at 5 s, lasting 7 seconds", (5, 12)),
        ("starts at 5 s, duration 7 s", (5, 12)),
        ("at 5 seconds and lasts for 7 seconds", (5, 12)),
        ("from 0:05 for 7 seconds", (5, 12)),
        ("It begins 5 seconds in and goes on for 7 seconds", (5, 12)),
        ("starts at 5 s and ends 7 s later", (5, 12)),
        ("starts at 5 s and lasts until 12 s", (5, 12)),
        ("start_time: 5.0, end_time: 12.0", (5, 12)),
        ('{"start_time": "00:05", "end_time": "00:12"}', (5, 12)),
        ('{"startTime": 5, "endTime": 12}', (5, 12)),
        ("from second 5 to second 12", (5, 12)),
        ("from t=5 to t=12", (5, 12)),
        ("around 5 s to about 12 s", (5, 12)),
        ("from approximately 5 to 12 seconds", (5, 12)),
        ("from the 5-second mark to the 12-second mark", (5, 12)),
        ("from 5 seconds into the video to the 12 seconds", (5, 12)),
        ("between the 5 s and 12 s marks", (5, 12)),
        ("**0:05** to **0:12**", (5, 12)),
        ("Start: 0:05\nEnd: 0:12", (5, 12)),
        ("(0:05, 0:12)", (5, 12)),
        ("5s to 12s (7 seconds)", (5, 12)),
        ("12,5 - 20,0 s", (12.5, 20)),
        ('["12.5", "20"]', (12.5, 20)),
        ("12500 ms - 20000 ms", (12.5, 20)),
        ("12500-20000 ms", (12.5, 20)),
        ("It may happen from 3 to 5 s", (3, 5)),
        # unreadable: denied, of other things, three times
        ("It does not happen between 3 and 5 s", None),
        ("from 12 to 20 meters", None),
        ("aged 12-20", None),
        ("January 12-20", None),
        ("The score is 3-5", None),
        ("step 3-5", None),
        ("12 to 20 to 30 s", None),
        ("either 12-20 s or later", None),
        # unreadable: frames, words, two numbers beside each other
        ("frames 5 to 12", None),
        ("five to twelve seconds", None),
        ("5.0 12.0", None),
        # unreadable: reversed, empty, one number, none, two that differ, no times at all
        ("20 to 12", None),
        ("12 to 12", None),
        ("12", None),
        ("at 12 seconds", None),
        ("no idea", None),
        ("", None),
        ("5 to 10 or 20 to 30", None),
        ("12.5 20", None),
        ("2024-11-30", None),
        ("-5 to 10", None),
        ("10% to 20%", None),
        ("1,200 - 1,300", None),
    ],
)
def test_spans(answer: str, expected: tuple[float, float] | None) -> None:
    assert span(answer) == expected


@pytest.mark.parametrize(
    "text", ["starts at 5 ", "5 to ", "from 5 for ", "start lasts ", "5-", "at 5 s lasts ", "frames 5 ", "start 5 end "]
)
def test_a_long_answer_takes_no_long_time(text: str) -> None:
    start = time.perf_counter()
    span(text * (8000 // len(text)))
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("10 - 20 s", "10 to 20", 1.0),
        ("10 - 20 s", "15 to 25", 1 / 3),
        ("0 - 20", "5 - 10", 0.25),
        ("0 - 5", "5 - 10", 0.0),
        ("1-2 min", "90 - 120 s", 0.5),
        ("10 - 20", "[0, 5] [12, 20]", 0.8),  # the best of several
        ("soon", "0 - 5", None),
    ],
)
def test_temporal_iou(answer: str, reference: str, expected: float | None) -> None:
    assert span_iou(answer, reference) == (None if expected is None else pytest.approx(expected))


def test_a_reference_without_a_span_is_named() -> None:
    with pytest.raises(ValueError, match=r"'a dog'; it must name a time span"):
        span_iou("1 - 2", "a dog")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[10, 20, 110, 220]", (10, 20, 110, 220)),
        ("[[10, 20, 110, 220]]", (10, 20, 110, 220)),
        ("<box>(10,20),(110,220)</box>", (10, 20, 110, 220)),
        ("<|box_start|>(10,20),(110,220)<|box_end|>", (10, 20, 110, 220)),
        ('```json\n[{"bbox_2d": [10, 20, 110, 220], "label": "dog"}]\n```', (10, 20, 110, 220)),
        ("<box>10 20 110 220</box>", (10, 20, 110, 220)),
        ("10, 20, 30, 40", (10, 20, 30, 40)),
        ("It is at [0.1, 0.2, 0.5, 0.9].", (0.1, 0.2, 0.5, 0.9)),
        ('{"x1": 1, "y1": 2, "x2": 3, "y2": 4}', (1, 2, 3, 4)),
        ("[30, 20, 10, 40]", None),
        ("[10, 20, 30]", None),
        ("[0, 0, 1, 1] or [2, 2, 3, 3]", None),
        ("on the left", None),
    ],
)
def test_boxes(answer: str, expected: tuple[float, ...] | None) -> None:
    assert box(answer) == expected


def test_box_iou() -> None:
    assert box_iou("[0, 0, 10, 10]", "[0, 0, 10, 10]") == 1.0
    assert box_iou("[0, 0, 10, 10]", "[5, 0, 15, 10]") == pytest.approx(1 / 3)
    assert box_iou("[0, 0, 1, 1]", "[2, 2, 3, 3]") == 0.0
    assert box_iou("[0, 0, 1, 1]", "[2, 2, 3, 3], [0, 0, 2, 1]") == 0.5
    assert box_iou("left", "[2, 2, 3, 3]") is None
    with pytest.raises(ValueError, match="it must name a box"):
        box_iou("[0, 0, 1, 1]", "left")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("about 1.5 minutes", Quantity(90.0, "time", 60.0)),
        ("1 min 30 s", Quantity(90.0, "time", 1.0)),
        ("5 km", Quantity(5000.0, "length", 1000.0)),
        ("1.8m", Quantity(1.8, "length", 1.0)),
        ("twenty-one", Quantity(21.0)),
        ("7 (seven)", Quantity(7.0)),
        ("90 s (90)", Quantity(90.0, "time", 1.0)),
        ("90 seconds (1.5 minutes)", Quantity(90.0, "time", 1.0)),
        ("three and a half hours", Quantity(12600.0, "time", 3600.0)),
        ("3 in the box", Quantity(3.0)),
        ("2 or 3", None),
        ("3 m and 5 s", None),
        ("many", None),
    ],
)
def test_quantities(text: str, expected: Quantity | None) -> None:
    assert quantity(text) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("1.5 min", "90 seconds", 0.0),
        ("100", "90 seconds", 1 / 9),  # without unit, in the reference's
        ("0.5 h", "1 hour", 0.5),
        ("150 cm", "1.2 m", 0.25),
        ("2 kg", "1500 g", 1 / 3),
        ("3 dogs", "four", 0.25),
        ("2", "0", 2.0),
        ("5 kg", "5 m", None),
        ("1h30", "90 min", 0.0),
        ("1h30m", "90 min", 0.0),
        ("5m30s", "330 s", 0.0),
        ("1:30 min", "90 s", 0.0),
        ("1:30 h", "90 min", 0.0),
        ("1:01 min", "61 s", 0.0),
        ("1:30", "90 s", None),
        ("10^3", "1000", 0.0),
        ("10³", "1000", 0.0),
        ("10⁻¹", "0.1", 0.0),
        ("2 x 10^3", "2000", 0.0),
        ("2^10", "1024", 0.0),
        ("1/2", "0.5", 0.0),
        ("1 1/2 h", "90 min", 0.0),
        ("3/4 km", "750 m", 0.0),
        ("½", "0.5", 0.0),
        ("2½ h", "150 min", 0.0),
        ("1/2/2024", "0.5", None),
        ("7/10", "7", None),
        ("1 h 30", "90 min", 0.0),
        ("3 h 20 km", "3 h", None),
        ("5/2", "5", None),
        ("a few", "5", None),
        (r"<think>4</think>\boxed{5}", "5", 0.0),
    ],
)
def test_relative_errors(answer: str, reference: str, expected: float | None) -> None:
    assert relative_error(answer, reference) == (None if expected is None else pytest.approx(expected, abs=1e-12))


EVENTS = ["A. the dog jumps", "B. a cat sleeps", "C. the man leaves"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B, A, C", [1, 0, 2]),
        ("2 1 3", [1, 0, 2]),
        ("B -> A -> C", [1, 0, 2]),
        ("B > A > C", [1, 0, 2]),
        ("(B)(A)(C)", [1, 0, 2]),
        ("BAC", [1, 0, 2]),
        ("BAB", None),
        ("(B) (A) (C)", [1, 0, 2]),
        ("The order is B, A, C.", [1, 0, 2]),
        ("B, then A, and then C", [1, 0, 2]),
        ("1 → 2 → 3", [0, 1, 2]),
        ("First a cat sleeps, then the dog jumps and the man leaves.", [1, 0, 2]),
        ("a cat sleeps\nthe dog jumps\nthe man leaves", [1, 0, 2]),
        ("B, A", None),
        ("B A A", None),
        ("A x B v C x", None),
        ("A ✗ B ✓ C ✗", None),
        ("the man leaves", None),
        ("", None),
    ],
)
def test_orders(answer: str, expected: list[int] | None) -> None:
    assert order(answer, EVENTS) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("run comes second, jump first, swim third", [1, 0, 2]),
        ("swim is last, jump is first, run is second", [1, 0, 2]),
        ("second run, first jump, third swim", [1, 0, 2]),
        ("first run, then jump, last swim", [0, 1, 2]),
        ("run, jump, and swim comes first", None),
        ("run, then jump, which was second, swim", None),
        ("swim after run, which is after jump", [1, 0, 2]),
        ("jump before run before swim", [1, 0, 2]),
        ("run, after that jump, then swim", [0, 1, 2]),
        ("run after jump, then swim", None),
        ("swim, but before that run and jump", None),
        ("not run, jump, swim", None),
    ],
)
def test_orders_that_are_not_those_of_mention(answer: str, expected: list[int] | None) -> None:
    assert order(answer, ["run", "jump", "swim"]) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "events", "expected"),
    [
        ("B, A, C", "B, A, C", (), 1.0),
        ("C, A, B", "B, A, C", (), 0.0),
        ("A, B, C", "B, A, C", (), 2 / 3),
        ("A, B", "B, A, C", (), None),
        ("3 2 1", "2 1 3", (), 1 / 3),
        ("a cat sleeps, the dog jumps, the man leaves", "B, A, C", EVENTS, 1.0),
        ("jump -> run -> sit", "run -> jump -> sit", (), 2 / 3),
    ],
)
def test_pairs_in_order(answer: str, reference: str, events: list[str], expected: float | None) -> None:
    assert pairs_in_order(answer, reference, events) == (None if expected is None else pytest.approx(expected))


def test_a_reference_that_is_no_order_is_named() -> None:
    with pytest.raises(ValueError, match="it must be an order of events"):
        pairs_in_order("B, A", "a dog")


def test_captions_are_ordered_by_what_they_share_with_the_reference() -> None:
    reference = "a man throws a red ball to his dog"
    answers = [reference, "a man throws his dog a ball", "a man sits", "trees"]
    scores = [chrf(answer, reference) for answer in answers]
    assert scores[0] == pytest.approx(1.0)
    assert scores == sorted(scores, reverse=True)
    assert scores[1] > 0.4 > scores[2] > scores[3]
