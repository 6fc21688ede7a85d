"""Every fenced snippet of README and docs is run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from orlaif.answer_format import Read
from orlaif.cli.recipe import read_recipe, run
from orlaif.data.datasets import JsonlDataset
from orlaif.policy import Policy
from orlaif.rollout import SamplingParams
from orlaif.samples import ShardWriter
from orlaif.types import CandidateGroup, Completions, OracleError, PromptBatch, Ranking, VideoClip, VideoPrompt
from tests.cli.test_cli import small
from tests.conftest import REPO
from tests.docs.pages import PAGES, Block, blocks

EXAMPLES = REPO / "docs" / "extend" / "examples"


def group(answer: str | None, *answers: str) -> CandidateGroup:
    frames = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    clip = VideoClip(frames=frames, pts_s=torch.tensor([0.0, 1.0], dtype=torch.float64), duration_s=2.0, path="a.mp4")
    prompt = VideoPrompt(id="1", video="a.mp4", question="q", answer=answer)
    return CandidateGroup(prompt=prompt, clip=clip, answers=answers)


def example(name: str) -> ModuleType:
    """A file of docs/extend/examples, imported."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_language_is_run_by_some_test() -> None:
    languages = {
        block.language
        for page in PAGES
        for language in ("bash", "python", "yaml", "json")
        for block in blocks(language, page)
    }
    fenced = {
        line[3:].split()[0]
        for page in PAGES
        for line in page.read_text().splitlines()
        if line.startswith("```") and line[3:]
    }
    assert fenced <= languages


@pytest.mark.parametrize(
    "block", [b for b in blocks("python") if "class ShortAndRight" in b.text], ids=lambda b: b.page
)
def test_the_oracle_of_ones_own(block: Block) -> None:
    assert len(block.text.strip().splitlines()) <= 16
    scope: dict = {}
    exec(block.text, scope)
    ranking = scope["ShortAndRight"]().rank([group("red", "it is red", "blue", "red", "red")])
    assert ranking.ranks.tolist() == [[1, 2, 0, 0]]


@pytest.mark.parametrize("block", blocks("python", REPO / "kernels" / "README.md"), ids=lambda b: b.name)
def test_the_kernels_examples(block: Block) -> None:
    assert len(block.text.strip().splitlines()) <= 16
    scope: dict = {}
    exec(block.text, scope)
    if "hidden" in scope:
        assert bool(scope["hidden"].grad.isfinite().all())


def test_reading_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = [block for block in blocks("python") if "read_groups" in block.text]
    answers = [{"text": "none", "rank": -1, "advantage": 0.0}, {"text": "a cat", "rank": 0, "advantage": 0.5}]
    writer = ShardWriter(tmp_path / "outputs/demo/rlaif/samples", 1, 0, 10**6)
    writer.write([{"step": 7, "epoch": 0, "batch": 7, "prompt": {"question": "What is it?"}, "answers": answers}])
    monkeypatch.chdir(tmp_path)
    exec(block.text, {})
    assert capsys.readouterr().out == "7 What is it? -> a cat 0.5\n"


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if "trainer:" in b.text[:9]], ids=lambda b: b.name)
def test_the_callbacks(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text(block.text)
    recipe = str(REPO / "recipes" / "demo_rlaif.yaml")
    settings = read_recipe(["--config", recipe, "--config", str(path), f"--run_dir={tmp_path}"]).trainer_settings
    assert settings["callbacks"]


def test_a_callback_is_added_to_those_of_a_recipe(tmp_path: Path) -> None:
    """By the words of the page on seeing a run and of the first real run."""
    recipe = str(REPO / "recipes" / "demo_rlaif.yaml")
    for page, name, value in (
        ("concepts/seeing_a_run", "WinRate", 64),
        ("tutorials/first_real_run", "GreedyRank", None),
    ):
        words = [f"--trainer.callbacks+=orlaif.training.callbacks.{name}"]
        words += [] if value is None else [f"--trainer.callbacks.num_prompts={value}"]
        assert " ".join(words) in (REPO / "docs" / f"{page}.md").read_text()
        settings = read_recipe(["--config", recipe, f"--run_dir={tmp_path}", *words]).trainer_settings
        kinds = [type(one).__name__ for one in settings["callbacks"]]
        assert {"ExportHuggingFace", "CompletionsBoard", name} <= set(kinds)


def test_every_python_snippet_is_known() -> None:
    """Files that pages include are tested below."""
    for block in blocks("python"):
        known = "class ShortAndRight" in block.text or "read_groups" in block.text or block.page == "kernels/README.md"
        assert known, f"no test runs {block.name}"


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if "HTTPJudge" in b.text], ids=lambda b: b.page)
def test_the_client_of_a_judge(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text(block.text)
    recipe = str(REPO / "recipes" / "demo_rlaif.yaml")
    cli = read_recipe(["--config", recipe, "--config", str(path), f"--run_dir={tmp_path}"])
    judge = getattr(cli.model.oracle, "judge", cli.model.oracle)  # a rubric judge asks one
    assert judge.client.model == "Qwen/Qwen3-VL-8B-Instruct"


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if "DecisionJudge" in b.text], ids=lambda b: b.page)
def test_the_judge_that_says_how_sure_it_is(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text(block.text)
    recipe = str(REPO / "recipes" / "demo_rlaif.yaml")
    oracle = read_recipe(["--config", recipe, "--config", str(path), f"--run_dir={tmp_path}"]).model.oracle
    assert oracle.state == "Sentence 1: {reference}\nSentence 2: {answer}"
    assert oracle.client.model == "/models/judge"


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if b.text.startswith("data:")], ids=lambda b: b.page)
def test_the_filter_of_rows(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text(block.text)
    recipe = str(REPO / "recipes" / "demo_rlaif.yaml")
    cli = read_recipe(["--config", recipe, "--config", str(path), f"--run_dir={tmp_path}"])
    train = cli.datamodule.datasets["train"]
    assert (train.min, train.max, train.missing, train.dataset.path) == (0.05, 0.95, "error", "train.jsonl")


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if "\ndata:" in b.text], ids=lambda b: b.page)
def test_the_recipes(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(block.text)
    cli = read_recipe(["--config", str(path), f"--run_dir={tmp_path}"])
    assert cli.model.policy.lora == {"r": 16, "target_modules": "all-linear"}
    assert cli.trainer_settings["accumulate_grad_batches"] == 4


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if "answer_format:" in b.text], ids=lambda b: b.page)
def test_the_format_of_answers(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text(block.text)
    recipe = str(REPO / "recipes" / "demo_rlaif.yaml")
    model = read_recipe(["--config", recipe, "--config", str(path), f"--run_dir={tmp_path}"]).model
    assert model.policy.answer_format.read("<think>a</think><answer>red</answer>") == Read("red", "a", True)
    asked = model.policy.chat.asked(VideoPrompt(id="1", video="a.mp4", question="What?")).question
    assert asked == "What? Think in <think> </think>, then answer in <answer> </answer>."
    assert model.policy.chat.chat_template_kwargs == {"enable_thinking": False}
    assert model.oracle.criteria == ("exact", "kind", "format")
    assert (model.truncated, model.overlong.buffer) == ("last", 4)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("boxed", r"so \boxed{red}"),
        ("{class_path: orlaif.answer_format.PatternAnswer, init_args: {pattern: 'A: *(.+)'}}", "A: red"),
        ("{class_path: orlaif.answer_format.FunctionAnswer, init_args: {function: textwrap.dedent}}", "red"),
        ("{class_path: orlaif.answer_format.TaggedAnswer, init_args: {answer: a, thoughts: null}}", "<a>red</a>"),
    ],
)
def test_other_formats_of_answers(settings: str, text: str, tmp_path: Path) -> None:
    recipe = str(REPO / "recipes" / "demo_think.yaml")
    given = f"--model.init_args.policy.init_args.answer_format={settings}"
    model = read_recipe(["--config", recipe, given, f"--run_dir={tmp_path}"]).model
    assert model.policy.answer_format.read(text).answer == "red"


@pytest.mark.parametrize("block", blocks("json"), ids=lambda b: b.page)
def test_the_rows(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(block.text)
    dataset = JsonlDataset(str(path))
    rows = [json.loads(row) for row in block.text.splitlines()]
    answers = [row["answer"] if "answer" in row else row["messages"][-1]["content"] for row in rows]
    assert [prompt.answer for prompt in dataset.prompts] == answers
    if "messages" not in rows[1]:
        assert dataset[1].end_s == 20.5


# ------------------------------------------------------------------------------------------- docs/extend/examples


def test_every_example_is_shown_and_tested() -> None:
    shown = {path.stem for path in EXAMPLES.glob("*.py")}
    assert shown == {"own_dataset", "own_oracle", "own_mapping", "own_loss", "own_rollout"}
    for name in shown:
        page = REPO / "docs" / "extend" / f"{name.removeprefix('own_')}.md"
        assert f"<!-- file: extend/examples/{name}.py -->" in page.read_text()


def test_own_dataset(tmp_path: Path) -> None:
    path = tmp_path / "trivia.jsonl"
    path.write_text('{"clip": "a.mp4", "q": "what ?", "a": "this"}\n{"clip": "b.mp4", "q": "who ?", "a": "her"}\n')
    dataset = example("own_dataset").Trivia(str(path))
    assert [(p.question, p.answer) for p in dataset.prompts] == [("what ?", "this"), ("who ?", "her")]
    assert len({p.id for p in dataset.prompts}) == 2
    path.write_text('{"clip": "a.mp4", "q": "what ?"}\n')
    with pytest.raises(ValueError, match=r"trivia.jsonl.* 1: field 'a' is missing"):
        _ = example("own_dataset").Trivia(str(path)).prompts


def test_own_oracle() -> None:
    oracle = example("own_oracle").SharedWords()
    assert oracle.rank([group("a red ball", "a ball", "red", "a red ball")]).ranks.tolist() == [[1, 2, 0]]
    with pytest.raises(OracleError, match="no reference answer"):
        oracle.rank([group(None, "a", "b")])


def test_own_mapping() -> None:
    completions = Completions(
        ids=torch.zeros(2, 4, 1, dtype=torch.int64), mask=torch.ones(2, 4, 1, dtype=torch.bool), texts=(("a",) * 4,) * 2
    )
    ranking = Ranking(ranks=torch.tensor([[0, 1, 2, -1], [0, 0, 1, 1]]))
    advantages = example("own_mapping").BestOfGroup()(ranking, completions)
    torch.testing.assert_close(advantages[0], torch.tensor([2 / 3, -1 / 3, -1 / 3, 0.0]))
    torch.testing.assert_close(advantages[1], torch.tensor([0.25, 0.25, -0.25, -0.25]))


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if "own_loss" in b.text], ids=lambda b: b.page)
def test_own_loss_trains_the_demo(
    block: Block, tmp_path: Path, tiny_model: str, data_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the page's own recipe, with the fused head, and without it: the same losses."""
    monkeypatch.syspath_prepend(EXAMPLES)
    (tmp_path / "overlay.yaml").write_text(block.text)
    more = ["--trainer.max_steps=3", "--model.init_args.num_updates=2", f"--config={tmp_path / 'overlay.yaml'}"]
    losses = []
    for head in ("true", "false"):
        words = small("demo_rlaif.yaml", "fit", tmp_path / head, tiny_model, data_root, *more)
        cli = run([*words, f"--model.init_args.loss.init_args.fused_head={head}"])
        assert type(cli.model.loss).__name__ == "SquaredTrust"
        assert (cli.model.loss.fused_head, cli.trainer.global_step) == (head == "true", 3)
        metrics = cli.trainer.callback_metrics
        assert metrics["train/log_ratio_squared"] > 0
        losses.append(float(metrics["train/loss"]))
    assert losses[0] != 0
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_own_rollout(policy: Policy, batch: PromptBatch) -> None:
    rollout = example("own_rollout").TwoTemperatures(group_size=4, sampling=SamplingParams(max_new_tokens=3))
    made = rollout(policy, batch, [torch.Generator().manual_seed(i) for i in range(len(batch))])
    assert made.ids.shape[:2] == (len(batch), 4)
    with pytest.raises(ValueError, match="group_size is 3; TwoTemperatures needs an even number"):
        example("own_rollout").TwoTemperatures(group_size=3)
