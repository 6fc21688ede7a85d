"""Each kind of oracle from its own recipe, in the whole loop on the embedded data set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orlaif.cli.recipe import run
from orlaif.data.preferences import PreferenceJsonl
from orlaif.oracles.ranker_model import Ranker
from orlaif.policy import Policy
from tests.cli.test_cli import small
from tests.conftest import REPO
from tests.oracles.lettered import make_lettered_model
from tests.oracles.server import ChatServer, short_is_true, shortest_first

RECIPES = sorted((REPO / "recipes" / "oracles").glob("*.yaml"))
ORACLE = "--model.init_args.oracle.init_args"
CLIENT = f"{ORACLE}.client.init_args"


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A judge, and a policy that can be one: its tokenizer knows the letters."""
    return make_lettered_model(str(tmp_path_factory.mktemp("letters")), seed=1)


@pytest.fixture(scope="module")
def ranker(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("ranker"))
    torch.manual_seed(0)
    Ranker(Policy(tiny_model, dtype="float32")).load().export(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with ChatServer(lambda asked: short_is_true(asked) if "state" in asked else shortest_first(asked)) as one:
        yield one


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_each_oracle_trains(
    recipe: Path, tmp_path: Path, letters: str, ranker: str, server: ChatServer, data_root: str
) -> None:
    """Two steps: every answer ranked, finite losses, weights that move, and an export."""
    named = {
        "listwise_judge": [f"{ORACLE}.model={letters}"],
        "pairwise_judge": [f"{ORACLE}.model={letters}"],
        "rubric_judge": [f"{ORACLE}.judge.init_args.model={letters}"],
        "decision_judge": [f"{CLIENT}.base_url={server.url}", f"{CLIENT}.cache_dir={tmp_path / 'cache'}"],
        "http_judge": [f"{CLIENT}.base_url={server.url}", f"{CLIENT}.cache_dir={tmp_path / 'cache'}"],
        "preference_ranker": [f"{ORACLE}.path={ranker}"],
    }.get(recipe.stem, [])
    arguments = small("demo_rlaif.yaml", "fit", tmp_path, letters, data_root, "--config", str(recipe), *named)
    steps = ["--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0"]
    cli = run([*arguments, *steps])
    assert f"--config recipes/oracles/{recipe.name}" in recipe.read_text()
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert [event.value for event in events.Scalars("oracle/unranked_rate")] == [0.0, 0.0]
    assert {"time/oracle", "time/oracle_wait", "oracle/failure_rate"} <= set(events.Tags()["scalars"])
    if recipe.stem == "http_judge":
        # two ballots for each of 8 groups, unless all its answers are the same
        assert 8 <= events.Scalars("oracle/requests")[0].value <= 16
    if recipe.stem == "rubric_judge":
        shares = [events.Scalars(f"oracle/rubric/{name}/decided") for name in ("seen", "answers", "rambles")]
        assert all(0 <= event.value <= 1 for share in shares for event in share)
    policy = cli.model.policy
    before = Policy(letters, dtype="float32").load().network.state_dict()
    after = {name: value for name, value in policy.network.state_dict().items() if name in before}
    if policy.lora is None:
        assert any(not torch.equal(value, before[name]) for name, value in after.items())
    else:
        adapter = load_file(tmp_path / "export" / "adapter_model.safetensors")
        assert any(bool(value.any()) for name, value in adapter.items() if "lora_B" in name)


def test_sampled_groups_become_preferences(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    """`orlaif predict --model orlaif.PreferenceSampling`: different answers with their ranks, no reference answer."""
    predict = {"class_path": "orlaif.demo.shapes.ShapesDataset", "init_args": {"root": data_root, "split": "train"}}
    predict["init_args"]["size"] = 64  # type: ignore[index]
    shortest = ["--config", str(REPO / "recipes" / "oracles" / "function.yaml")]
    words_ = [*shortest, "--model", "orlaif.PreferenceSampling", f"--data.init_args.predict={json.dumps(predict)}"]
    run(small("demo_rlaif.yaml", "predict", tmp_path, tiny_model, data_root, *words_))
    path = tmp_path / "predictions" / "preferences.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert 5 < len(rows) <= 64
    for row in rows:
        assert set(row) == {"id", "video", "question", "category", "answers", "ranks"}
        assert len(set(row["answers"])) == len(row["answers"])
        assert sorted(set(row["ranks"])) == list(range(len(set(row["ranks"]))))
        lengths = [len(answer.split()) for answer in row["answers"]]
        assert row["ranks"] == [sorted(set(lengths)).index(length) for length in lengths]
    loaded = PreferenceJsonl(str(path))
    assert all(Path(prompt.video).is_file() for prompt in loaded.prompts)
    again = tmp_path / "again"
    run(small("demo_rlaif.yaml", "predict", again, tiny_model, data_root, *words_))
    assert [json.loads(line)["answers"] for line in (again / "predictions" / "preferences.jsonl").open()] == [
        row["answers"] for row in rows
    ]
