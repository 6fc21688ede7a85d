"""Scalar GRPO is TRL's: two steps of both trainers, from one start and with the same answers, leave equal weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from orlaif_kernels.arguments import LossType
from transformers import AutoModelForImageTextToText, AutoTokenizer

from orlaif import OracleRLAIF, VideoDataModule
from orlaif.advantages import ZScore
from orlaif.data.datasets import JsonlDataset
from orlaif.losses import GRPORankLoss
from orlaif.oracles import ScoreOracle
from orlaif.policy import Policy
from orlaif.rollout import Rollout, SamplingParams
from orlaif.training.rlaif import Reference
from orlaif.types import CandidateGroup, Completions, PromptBatch
from tests.training.test_rlaif import trainer

GROUP, LONGEST, RATE, KL = 4, 5, 0.3, 0.5
QUESTIONS = ("what color is the circle ?", "what shape ?", "how many shapes are there ?")


def drawn(question: str) -> list[list[int]]:
    """The same ragged answers to a question, whoever asks."""
    g = torch.Generator().manual_seed(len(question))
    lengths = torch.randint(1, LONGEST + 1, (GROUP,), generator=g).tolist()
    return [torch.randint(20, 60, (n,), generator=g).tolist() for n in lengths]


def worth(answer: str) -> float:
    return len(answer) + 0.5 * answer.count("e")


class Scripted(Rollout):
    """Those answers, for orlaif."""

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Any) -> Completions:
        tokenizer = policy.processor.tokenizer
        ids = [drawn(prompt.question) for prompt in batch.prompts]
        texts = tuple(tuple(tokenizer.batch_decode(group, skip_special_tokens=True)) for group in ids)
        return Completions.padded(ids, texts, policy.pad_id, policy.device)


def by_orlaif(folder: str, tmp_path: Path, loss_type: LossType) -> dict[str, torch.Tensor]:
    """Weights after two steps."""

    def score(group: CandidateGroup) -> list[float]:
        return [worth(answer) for answer in group.answers]

    rows = [{"id": question, "messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = OracleRLAIF(
        Policy(folder, dtype="float32"),
        oracle=ScoreOracle(score),
        rollout=Scripted(group_size=GROUP, sampling=SamplingParams(max_new_tokens=LONGEST)),
        advantage=ZScore(),
        loss=GRPORankLoss(kl_coef=KL, loss_type=loss_type),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=RATE),
        order_consistency_every_n_steps=0,
        reference=Reference(refresh="never"),
    )
    data = VideoDataModule(train=JsonlDataset(str(path)), batch_size=len(QUESTIONS))
    trainer(tmp_path, max_steps=2, max_epochs=2, gradient_clip_val=1.0).fit(module, data)
    return {name: one.detach() for name, one in module.policy.network.named_parameters()}


def by_trl(folder: str, tmp_path: Path, loss_type: LossType) -> dict[str, torch.Tensor]:
    """Weights after two steps."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    class Told(GRPOTrainer):
        def _generate_single_turn(self, prompt_ids: Any, *_: Any) -> Any:
            """The same answers; a group's prompts stand next to each other."""
            texts = tokenizer.batch_decode(prompt_ids)
            asked = [next(question for question in QUESTIONS if question in text) for text in texts[::GROUP]]
            return [ids for question in asked for ids in drawn(question)], None

    def rewards(completions: list[Any], **_: Any) -> list[float | None]:
        return [worth(said[0]["content"]) for said in completions]

    config = GRPOConfig(
        output_dir=str(tmp_path / "trl"),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=GROUP * len(QUESTIONS),
        num_generations=GROUP,
        max_completion_length=LONGEST,
        beta=KL,
        use_bias_correction_kl=False,
        loss_type=loss_type,
        scale_rewards="group",
        max_grad_norm=1.0,
        max_steps=2,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    steady = torch.optim.lr_scheduler.LambdaLR(sgd, lambda _: 1.0)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS])
    Told(
        model=model,
        processing_class=tokenizer,
        reward_funcs=rewards,
        train_dataset=rows,
        args=config,
        optimizers=(sgd, steady),
    ).train()
    return {name: one.detach() for name, one in model.named_parameters()}


@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_two_steps_leave_the_weights_of_trl(
    loss_type: LossType, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts, advantages, KL to the frozen start (not 0 at the second step), divisor and gradient clip at once.

    But for one thing that is orlaif's own: the tokens that stand for images and videos, which no answer may hold, have
    no share in its probabilities. Of 62 words that would be 2 % of the gradient.
    """
    monkeypatch.setattr(Policy, "placeholder_ids", [])
    pytest.importorskip("trl", reason="TRL is a test dependency: pip install -e '.[dev]'")
    before = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32).state_dict()
    ours, theirs = (train(tiny_model, tmp_path, loss_type) for train in (by_orlaif, by_trl))
    assert ours.keys() == theirs.keys()
    moved = torch.cat([(theirs[name] - before[name]).flatten() for name in theirs])
    apart = torch.cat([(theirs[name] - ours[name]).flatten() for name in theirs])
    assert float(moved.norm()) > 0.3  # two gradients of norm 1 at this rate, but for their angle
    assert float(apart.norm()) < 1e-4 * float(moved.norm())
