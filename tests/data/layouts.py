"""Rows in the published layouts of benchmarks, written by hand, and a folder that holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MVBENCH: dict[str, list[dict[str, Any]]] = {
    "action_sequence": [
        {
            "video": "v0.mp4",
            "question": "What happened after the person took the food?",
            "candidates": ["Ate it.", "Sat down.", "Put down the cup."],
            "answer": "Sat down.",
            "start": 0.0,
            "end": 1.5,
        }
    ],
    "moving_count": [
        {"video": "v1.mp4", "question": "How many cubes move?", "candidates": ["3", "0", "1", "2"], "answer": "3"},
        {"video": "v2.mp4", "question": "How many balls move?", "candidates": ["3", "0", "1", "2"], "answer": "2"},
    ],
}
LONGVIDEOBENCH = [
    {
        "id": f"v{i}_0",
        "video_id": f"v{i}",
        "video_path": f"v{i}.mp4",
        "subtitle_path": f"v{i}_en.json",
        "starting_timestamp_for_subtitles": 0,
        "question": "In a white room, a man speaks. What does he hold?",
        "question_wo_referring_query": "What does he hold?",
        "candidates": ["a cup", "a pen", "a phone", "a hat"],
        "correct_choice": 2,
        "duration": 2.0,
        "duration_group": (15, 60)[i],
        "question_category": ("S2E", "T3O")[i],
        "topic_category": "KH-Knowledge-History",
        "level": "L1-Perception",
        "position": [10],
        "view_count": 7,
    }
    for i in range(2)
]
LVBENCH = [
    {
        "key": "v0",
        "type": "cartoon",
        "video_info": {"duration_minutes": 60, "fps": 30.0, "resolution": {"width": 640, "height": 360}},
        "qa": [
            {
                "uid": "12",
                "question": "What year appears?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633",
                "answer": "D",
                "question_type": ["key information retrieval"],
                "time_reference": "00:15-00:19",
            },
            {
                "uid": "13",
                "question": "Who comes first?\n(A) a dog\n(B) a cat\n(C) a man\n(D) a boy",
                "answer": "A",
                "question_type": ["event understanding", "entity recognition"],
                "time_reference": "01:15-01:19",
            },
        ],
    }
]
MMVU: list[dict[str, Any]] = [
    {
        "id": "validation_0",
        "video": "https://example.org/resolve/main/videos/Art/0.mp4",
        "youtube_url": "https://example.org/watch?v=a",
        "question_type": "open-ended",
        "metadata": {"subject": "Art", "textbook": "A Handbook", "rationale": "", "knowledge": []},
        "question": "Which technique is shown?",
        "choices": {"A": "", "B": "", "C": "", "D": "", "E": ""},
        "answer": "Dolly Zoom",
    },
    {
        "id": "validation_1",
        "video": "https://example.org/resolve/main/videos/Chemistry/0.mp4",
        "youtube_url": "https://example.org/watch?v=b",
        "question_type": "multiple-choice",
        "metadata": {"subject": "Chemistry", "textbook": "Chemistry", "rationale": "", "knowledge": []},
        "question": "How many grams?",
        "choices": {"A": "10.0", "B": "5.0", "C": "12.0", "D": "15.0", "E": "20.0"},
        "answer": "B",
    },
]
TEMPCOMPASS: dict[str, dict[str, dict[str, list[dict[str, str]]]]] = {
    "multi-choice": {
        "v0": {"action": [{"question": "What is he doing?\nA. running\nB. sitting", "answer": "A. running"}]},
        "v1_reverse": {"speed": [{"question": "How fast?\nA. slow\nB. fast", "answer": "B. fast"}]},
    },
    "yes_no": {"v0": {"action": [{"question": "Is he running?", "answer": "yes"}]}},
    "caption_matching": {
        "v0": {
            "action": [
                {
                    "question": "Which caption matches the video better?\nCaption A: He sits.\nCaption B: He runs.",
                    "answer": "Caption B: He runs.",
                }
            ]
        }
    },
}
TEMPCOMPASS["captioning"] = {
    "v0": {
        "action": [
            {
                "question": "Which information is right? Write a caption.\nInformation A: {'action': 'running'}",
                "answer": "A. running",
            }
        ]
    }
}
SUBTITLES: dict[str, list[dict[str, Any]]] = {
    "v0_en.json": [
        {"start": "00:00:00.000", "end": "00:00:01.600", "line": "Hello."},
        {"start": "00:00:01.700", "end": "00:00:01.800", "line": "This is a cup."},
        {"start": "00:00:00.500", "end": "00:00:03.500", "line": "Look."},
    ],
    "v1_en.json": [{"timestamp": [0.2, 1.4], "text": "One."}, {"timestamp": [0.9, None], "text": "Two."}],
}
CHARADES = "v0 24.3 30.4##person turn a light on.\nv1 0.0 7.5##a person closes the door\n"


def layout(folder: Path, name: str) -> Path:
    """The files of a benchmark below ``folder``; returns what a recipe names as ``path``."""
    if name in ("mvbench", "tempcompass"):
        files = MVBENCH if name == "mvbench" else TEMPCOMPASS
        path = folder / ("json" if name == "mvbench" else "questions")
        path.mkdir()
        for file, content in files.items():
            (path / f"{file}.json").write_text(json.dumps(content))
        return path
    if name == "charades_sta":
        path = folder / "charades_sta_test.txt"
        path.write_text(CHARADES)
    elif name == "lvbench":
        path = folder / "video_info.meta.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in LVBENCH))
    else:
        path = folder / f"{name}.json"
        if name == "longvideobench":
            (folder / "subtitles").mkdir()
            for file, lines in SUBTITLES.items():
                (folder / "subtitles" / file).write_text(json.dumps(lines))
        path.write_text(json.dumps(LONGVIDEOBENCH if name == "longvideobench" else MMVU))
    return path
