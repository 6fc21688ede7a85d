"""``prefix: auto`` asks the loaded model: what it accepts, what it refuses, and what it says."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLForConditionalGeneration,
)

from orlaif.demo.shapes import ShapesDataset, words
from orlaif.policy import Policy
from orlaif.policy.families import Family
from orlaif.policy.prefix import prepare, synthetic
from orlaif.policy.prefix import probe as prefix_check
from orlaif.policy.prefix.group_cache import GroupCache
from orlaif.policy.prefix.layout import GroupRows
from orlaif.rollout import SamplingParams, generate
from orlaif.rollout.decoding import ExpandedDecoder, SharedDecoder
from orlaif.rollout.local import start
from orlaif.tiny import tiny_model
from orlaif.types import PromptBatch
from tests.conftest import make_policy, random_completions
from tests.families import FAMILIES
from tests.rollout.test_local import five


def make_hybrid(folder: str) -> None:
    """A Qwen3.5: a layer of linear attention, whose state runs through the sequence, and one of full attention."""
    tiny_model("qwen3_5", folder, words())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_auto_shares_what_is_exact(family: str, dtype: str, tmp_path: object, caplog: pytest.LogCaptureFixture) -> None:
    FAMILIES[family](str(tmp_path))
    with caplog.at_level("INFO", logger="orlaif"):
        policy = Policy(str(tmp_path), dtype=dtype).load()
    assert policy.layout == "shared"
    assert policy.choice.attentions == ("mask", "split")
    assert f"auto chose 'shared' for model type '{family}': log-probs equal the model's own to" in caplog.text


@pytest.fixture
def states_unfound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers whose state nobody knows how to fork inside a row."""
    monkeypatch.setattr(prepare, "find_mixers", lambda model, fill: {})


@pytest.mark.usefixtures("states_unfound")
def test_auto_forks_where_a_row_cannot_serve_and_says_why(
    tmp_path: object, shapes: ShapesDataset, caplog: pytest.LogCaptureFixture
) -> None:
    make_hybrid(str(tmp_path))
    with caplog.at_level("INFO", logger="orlaif"):
        policy = make_policy(str(tmp_path))
    assert policy.layout == "fork"
    assert "auto chose 'fork' for model type 'qwen3_5': log-probs equal the model's own to" in caplog.text
    assert "not 'shared': it has layers of linear_attention" in caplog.text
    # And it works: sampled log-probs are the training forward's.
    batch = five(policy, shapes)
    sampling = SamplingParams(max_new_tokens=5)
    completions = generate(policy, batch, 3, sampling, torch.Generator().manual_seed(0))
    with torch.no_grad():
        again = policy.completion_logps(batch, completions)
    assert completions.logps is not None
    torch.testing.assert_close(completions.logps, again, atol=2e-4, rtol=0)


@pytest.mark.usefixtures("states_unfound")
def test_shared_is_refused_where_a_row_cannot_serve(tmp_path: object) -> None:
    make_hybrid(str(tmp_path))
    with pytest.raises(ValueError, match=r"policy.prefix is 'shared', but not for model type 'qwen3_5': it has layers"):
        Policy(str(tmp_path), dtype="float32", prefix="shared").load()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_alone_find_a_state_that_runs_on(dtype: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look at its config, also in low precision."""
    make_hybrid(str(tmp_path))
    monkeypatch.setattr(prepare, "run_in_rows", lambda mixers: None)
    assert Policy(str(tmp_path), dtype=dtype).load().layout == "fork"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_numbers_find_an_attention_that_leaks(
    tiny_model: str, dtype: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mask by which completions see each other is refused; the other implementation still passes."""

    def causal(self: GroupRows) -> torch.Tensor:
        r, length = self.shape
        return torch.ones(length, length, dtype=torch.bool).tril().expand(r, 1, length, length)

    monkeypatch.setattr(GroupRows, "mask", property(causal))
    with caplog.at_level("INFO", logger="orlaif"):
        policy = Policy(tiny_model, dtype=dtype).load()
    assert policy.choice.attentions == ("split",)
    assert "mask gives log-probs that differ" in caplog.text or "mask lets one completion see another" in caplog.text


def test_a_processor_that_fails_is_named(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such video")

    monkeypatch.setattr(synthetic, "ProcessorEncoder", broken)
    for prefix in ("shared", "auto", "duplicate"):
        with pytest.raises(ValueError, match="model type 'qwen3_vl' cannot be shown a video: RuntimeError: no such"):
            Policy(tiny_model, dtype="float32", prefix=prefix).load()  # type: ignore[arg-type]


def test_attention_by_name(tiny_model: str) -> None:
    assert Policy(tiny_model, dtype="float32", prefix_attention="split").load().choice.attentions == ("split",)
    assert Policy(tiny_model, dtype="float32", prefix_attention="mask").load().choice.attentions == ("mask",)
    assert Policy(tiny_model, dtype="float32", attn_implementation="eager").load().choice.attentions == ("mask",)
    assert Policy(tiny_model, dtype="float32", prefix="duplicate").load().choice.attentions == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefix_attention": "flash"}, "policy.prefix_attention is 'flash'"),
        ({"prefix_attention": "split", "attn_implementation": "eager"}, "attn_implementation 'sdpa'"),
        ({"prefix_attention": "split", "prefix": "duplicate"}, "needs prefix 'auto' or 'shared'"),
    ],
)
def test_mistakes_are_named(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy("nowhere", **settings)  # type: ignore[arg-type]


class Blind(Family):
    """A processor that is given no video, and a prompt that has no place for one."""

    def encode(self, processor: Any, prompt: str, clip: Any, metadata: Any) -> dict[str, Any]:
        inputs = processor.tokenizer(prompt.replace("<|video_pad|>", ""), return_tensors="pt")
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("prefix", ["auto", "shared", "duplicate"])
def test_a_model_that_does_not_see_is_refused(prefix: Any, tiny_model: str) -> None:
    with pytest.raises(
        ValueError, match="model type 'qwen3_vl' takes no video: its log-probs are the same for another"
    ):
        Policy(tiny_model, dtype="float32", prefix=prefix, family=Blind()).load()


def test_a_model_of_text_is_refused(tmp_path: Path) -> None:
    config = Qwen3Config(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model of type 'qwen3', which takes no video"):
        Policy(str(tmp_path)).load()


class Neighbourly(Family):
    """Batches in which the second prompt is shown the first one's video."""

    def joined(self, values: Any) -> Any:
        return super().joined({name: [given[0]] * len(given) for name, given in values.items()})


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("duplicate", "cannot be trained on batches: duplicate gives log-probs that differ"),
        ("fork", "not for"),
        ("shared", "not for"),
    ],
)
def test_a_batch_that_is_not_its_prompts_is_refused(prefix: Any, message: str, tiny_model: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(tiny_model, dtype="float32", prefix=prefix, family=Neighbourly()).load()


def test_a_cache_that_cannot_be_shared_is_kept_for_each_row(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The row layout stays; decoding falls back one step and says why; what must have a shared cache is refused."""

    def wrong(self: GroupCache, layer: int, query: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(query)

    monkeypatch.setattr(GroupCache, "attend", wrong)
    with caplog.at_level("INFO", logger="orlaif"):
        policy = Policy(tiny_model, dtype="float32").load()
    assert (policy.layout, policy.reads_prompt_once) == ("shared", False)
    assert (
        "each completion has a cache of its own for model type 'qwen3_vl': a shared one: log-probs differ"
        in caplog.text
    )
    assert isinstance(decoder_of(policy), ExpandedDecoder)
    monkeypatch.undo()
    assert isinstance(decoder_of(Policy(tiny_model, dtype="float32").load()), SharedDecoder)


def decoder_of(policy: Policy) -> Any:
    return start(policy, policy.stand_in(torch.device("cpu")), 2, 3)[1]


def test_decoding_that_is_wrong_either_way_is_refused(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_check, "expanded_step", lambda model, cache, tokens, *_: torch.zeros(len(tokens), 5000))
    with pytest.raises(ValueError, match="model type 'qwen3_vl' cannot decode behind a cache: log-probs differ"):
        Policy(tiny_model, dtype="float32", prefix="duplicate").load()


@pytest.mark.parametrize("prefix", ["shared", "duplicate"])
def test_a_head_with_a_scale_is_fused_with_it(
    prefix: Any, tiny_model: str, batch: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that the model multiplies by 0.25 behind its head."""
    scaled(monkeypatch, lambda logits: 0.25 * logits)
    policy = make_policy(tiny_model, prefix=prefix)
    assert policy.choice is not None
    assert policy.choice.head.scale == pytest.approx(0.25, rel=1e-5)
    completions = random_completions(policy, 5, 2, 3)
    fused = policy.completion_logps(batch, completions, fused_head=True)
    torch.testing.assert_close(fused, policy.completion_logps(batch, completions).detach(), atol=1e-4, rtol=0)


def test_a_head_that_does_more_is_not_fused(
    tiny_model: str, batch: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled(monkeypatch, lambda logits: logits + 0.1 * logits.abs().sqrt())
    policy = make_policy(tiny_model)
    with pytest.raises(ValueError, match=r"loss.fused_head: not for model type 'qwen3_vl': its logits are not what"):
        policy.completion_hidden(batch, random_completions(policy, 5, 2, 3))


def scaled(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let Qwen3-VL do something to its logits behind the LM head."""
    forward = Qwen3VLForConditionalGeneration.forward

    @functools.wraps(forward)
    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = change(out.logits)
        return out

    monkeypatch.setattr(Qwen3VLForConditionalGeneration, "forward", changed)
