"""The training step in a real Trainer: what it pays for, what it logs, how it accumulates and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from orlaif import OracleRLAIF, SupervisedFineTuning, VideoDataModule
from orlaif.advantages import DCG
from orlaif.data import collator as collator_file
from orlaif.data.video import UniformSampling
from orlaif.demo.shapes import ShapesDataset
from orlaif.distributed.sharding import Sharding
from orlaif.losses import GRPORankLoss
from orlaif.oracles import Oracle, OracleFailure, ReferenceAnswerOracle
from orlaif.policy import Policy
from orlaif.rollout import Rollout, SamplingParams
from orlaif.training.rlaif import Reference
from orlaif.types import Completions, Delivery, OracleError, PromptBatch, Ranking
from tests.conftest import random_completions


class Scripted(Rollout):
    """Answers that depend on the prompt alone, ragged, so that another batching meets the same groups."""

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Any) -> Completions:
        ids, masks = [], []
        for prompt in batch.prompts:
            g = torch.Generator().manual_seed(int(prompt.id.split("-")[1]))
            ids.append(torch.randint(20, 60, (self.group_size, 4), generator=g))
            masks.append(torch.arange(4) < torch.randint(1, 5, (self.group_size, 1), generator=g))
        texts = [policy.processor.tokenizer.batch_decode(group[:, :1]) for group in ids]
        return Completions(ids=torch.stack(ids), mask=torch.stack(masks), texts=tuple(tuple(t) for t in texts))


class ByText(Oracle):
    """Orders answers by their text: some order, the same for any batching."""

    def rank(self, groups: Any) -> Ranking:
        ranks = [[sorted(set(group.answers)).index(answer) for answer in group.answers] for group in groups]
        return Ranking(ranks=torch.tensor(ranks))


class Recorder(Callback):
    """Keeps the gradients that the optimizer sees, and the metrics of every step."""

    def __init__(self) -> None:
        self.grads: list[dict[str, torch.Tensor]] = []
        self.metrics: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.policy.network.named_parameters()
        self.grads.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def data(root: str, batch_size: int, **settings: Any) -> VideoDataModule:
    splits = {
        name: ShapesDataset(root, split, size=size)
        for name, split, size in (("train", "train", 64), ("val", "validation", 10), ("test", "test", 20))
    }
    return VideoDataModule(**splits, sampling=UniformSampling(8), batch_size=batch_size, **settings)


def rlaif(folder: str, **settings: Any) -> OracleRLAIF:
    defaults: dict[str, Any] = {
        "oracle": ReferenceAnswerOracle(),
        "rollout": Rollout(group_size=4, sampling=SamplingParams(max_new_tokens=3)),
        "loss": GRPORankLoss(kl_coef=0.05, entropy_coef=0.01),
        "optimizer": lambda params: torch.optim.AdamW(params, lr=1e-2),
        "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
        "eval_max_new_tokens": 3,
        "seed": 7,
    }
    return OracleRLAIF(Policy(folder, dtype="float32"), **{**defaults, **settings})


def sft(folder: str, **settings: Any) -> SupervisedFineTuning:
    return SupervisedFineTuning(
        Policy(folder, dtype="float32"), optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2), seed=7, **settings
    )


def trainer(tmp_path: Path, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "default_root_dir": str(tmp_path),
    }
    return Trainer(**{**defaults, **settings})


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.policy.network.named_parameters()}


# --------------------------------------------------------------------- what a step pays for, and what it says


def test_one_step_decodes_once_encodes_once_and_logs_everything(
    tiny_model: str, data_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    real = collator_file.decode_clip
    monkeypatch.setattr(collator_file, "decode_clip", lambda prompt, *a: decoded.append(prompt.id) or real(prompt, *a))
    calls = {"vision": 0, "logits": []}

    class Hooks(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            network = pl_module.policy.network
            network.model.visual.register_forward_hook(lambda *_: calls.__setitem__("vision", calls["vision"] + 1))
            network.lm_head.register_forward_hook(lambda m, a, out: calls["logits"].append(out.shape[:2].numel()))

    recorder = Recorder()
    module = rlaif(tiny_model, order_consistency_every_n_steps=1)
    trainer(tmp_path, max_steps=1, callbacks=[Hooks(), recorder]).fit(module, data(data_root, 4, ahead=0))
    assert len(decoded) == len(set(decoded)) == 4  # P videos for P x G answers
    assert calls["vision"] == 2  # once for the rollout, once with gradient
    prefill, *steps, training = calls["logits"]
    assert prefill == 4
    assert set(steps) == {16}
    longest = len(steps) + 1
    assert training == 4 * 4 * longest  # completion positions only

    (metrics,) = recorder.metrics
    assert set(metrics) == {
        *(f"train/{m}" for m in ("loss", "kl", "entropy", "num_tokens", "grad_norm", "lr")),
        *(f"train/clip_ratio/{m}" for m in ("low_mean", "high_mean", "region_mean", "runaway_mean")),
        *(f"train/completions/{m}" for m in ("mean_length", "clipped_ratio")),
        *(f"time/{m}" for m in ("decode", "data_wait", "rollout", "oracle", "oracle_wait", "reference", "policy")),
        *(f"oracle/{m}" for m in ("tie_rate", "unranked_rate", "zero_signal_rate", "order_consistency", "policy_tau")),
        *(f"oracle/{m}" for m in ("length_tau", "position_tau", "mean_score", "failure_rate")),
        "data/bad_videos",
    }
    assert all(metrics[f"time/{stage}"] > 0 for stage in ("decode", "rollout", "oracle", "reference", "policy"))
    assert metrics["train/kl"] == pytest.approx(0.0, abs=1e-6)  # the reference is the policy still
    assert metrics["train/clip_ratio/region_mean"] == 0.0  # one update per rollout: the ratio is 1
    assert metrics["oracle/order_consistency"] == 1.0
    assert metrics["train/grad_norm"] > 0


def test_no_reference_is_loaded_without_kl(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    module = rlaif(tiny_model, loss=GRPORankLoss())
    trainer(tmp_path, max_steps=1).fit(module, data(data_root, 4))
    assert module.policy.reference.model is None
    assert not any(name.startswith("policy.reference") for name in module.state_dict())


def test_the_reference_stays_or_follows_each_epoch(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    start = weights(sft(tiny_model))
    for refresh, moved in (("never", False), ("epoch", True)):
        module = rlaif(tiny_model, reference=Reference(refresh=refresh))
        trainer(tmp_path, max_epochs=2, limit_train_batches=2).fit(module, data(data_root, 4))
        reference = dict(module.policy.reference.model.named_parameters())
        assert any(not torch.equal(reference[name], start[name]) for name in start) is moved
        assert not any(p.requires_grad for p in reference.values())


# --------------------------------------------------------------------------------------- accumulated batches


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_four_accumulated_batches_are_one_of_four_times_the_size(
    tiny_model: str, data_root: str, tmp_path: Path, loss_type: str
) -> None:
    """Groups of different lengths, so that a mean of means would be another number."""
    recorders = []
    for size, n in ((4, 4), (16, 1)):
        recorder = Recorder()
        module = rlaif(
            tiny_model,
            rollout=Scripted(group_size=4, sampling=SamplingParams(max_new_tokens=4)),
            oracle=ByText(),
            loss=GRPORankLoss(kl_coef=0.05, entropy_coef=0.01, loss_type=loss_type),
        )
        trainer(tmp_path, max_steps=2, accumulate_grad_batches=n, gradient_clip_val=0.0, callbacks=[recorder]).fit(
            module, data(data_root, size)
        )
        recorders.append(recorder)
    first, second = recorders
    assert len(first.grads) == len(second.grads)
    a, b = first.grads[0], second.grads[0]
    assert a.keys() == b.keys()
    norm = torch.stack([g.norm() for g in b.values()]).norm()
    error = torch.stack([(a[name] - b[name]).norm() for name in a]).norm()
    assert float(norm) > 1e-3
    assert float(error / norm) <= 1e-5


def test_supervised_batches_accumulate_exactly_too(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    ends = []
    for size, n in ((4, 4), (16, 1)):
        module = sft(tiny_model)
        module.optimizer = lambda params: torch.optim.SGD(params, lr=0.1)
        trainer(tmp_path, max_steps=1, accumulate_grad_batches=n, gradient_clip_val=0.5).fit(
            module, data(data_root, size)
        )
        ends.append(weights(module))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], atol=1e-6, rtol=1e-5)


def test_an_incomplete_accumulation_at_the_end_of_an_epoch(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    """16 batches in fours of three: the last step has one batch, and its gradient is that batch's."""
    recorders = []
    for settings in ({"accumulate_grad_batches": 3, "limit_train_batches": 1}, {"limit_train_batches": 1}):
        recorder = Recorder()
        trainer(tmp_path, max_epochs=1, callbacks=[recorder], **settings).fit(rlaif(tiny_model), data(data_root, 4))
        recorders.append(recorder)
    a, b = (r.grads[0] for r in recorders)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-7, rtol=1e-5)


# ------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(("make", "stop"), [(rlaif, 6), (rlaif, 8), (sft, 5)], ids=["mid-epoch", "epoch-end", "sft"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_resumed_equals_uninterrupted(
    make: Any, stop: int, num_workers: int, tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    """8 batches an epoch, accumulated by 2; stopped after ``stop // 2`` steps; weights bitwise equal after 7 steps.

    A run with a worker is the one without it, which is not interrupted.
    """
    if num_workers and stop != 6:
        pytest.skip("one run with a worker is enough for the loader's sake; tests/data has the ends of its epochs")
    settings = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    loader = {"num_workers": num_workers}
    whole = make(tiny_model)
    trainer(tmp_path, max_steps=7, **settings).fit(whole, data(data_root, 8))

    steps = -(-stop // 2)
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "c", save_last=True, every_n_train_steps=steps, save_top_k=0)
    trainer(tmp_path, max_steps=steps, enable_checkpointing=True, callbacks=[checkpoints], **settings).fit(
        make(tiny_model), data(data_root, 8, **loader)
    )
    resumed = make(tiny_model)
    trainer(tmp_path, max_steps=7, **settings).fit(
        resumed, data(data_root, 8, **loader), ckpt_path=tmp_path / "c" / "last.ckpt"
    )
    a, b = weights(whole), weights(resumed)
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert whole.totals == resumed.totals


def test_a_checkpoint_leaves_out_a_reference_that_never_moves(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    for refresh, kept in (("never", False), ("epoch", True)):
        fit = trainer(tmp_path, max_steps=1)
        fit.fit(rlaif(tiny_model, reference=Reference(refresh=refresh)), data(data_root, 4))
        fit.save_checkpoint(tmp_path / "x.ckpt")
        state = torch.load(tmp_path / "x.ckpt", weights_only=False)["state_dict"]
        assert any(name.startswith("policy.reference.") for name in state) is kept


# ----------------------------------------------------------------------------------------- failures and skips


class Stubborn(Oracle):
    """Fails for some prompts; every second time only, if ``moody``."""

    def __init__(self, bad: int, moody: bool = False) -> None:
        self.bad, self.moody, self.asked = bad, moody, 0

    def rank(self, groups: Any) -> Ranking:
        self.asked += 1
        for group in groups:
            if int(group.prompt.id.split("-")[1]) % self.bad == 0 and not (self.moody and self.asked % 2 == 0):
                raise OracleError("Stubborn", group.prompt.id, "no answer")
        return ByText().rank(groups)


def test_a_failing_oracle_stops_the_run_where_the_recipe_says_so(
    tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    stops = rlaif(tiny_model, oracle=Stubborn(4), on_oracle_failure=OracleFailure(action="error"))
    with pytest.raises(OracleError, match="oracle Stubborn gave no ranking for prompt 'train-"):
        trainer(tmp_path, max_epochs=1).fit(stops, data(data_root, 8))


def test_an_oracle_that_always_fails_stops_even_a_short_run_by_default(
    tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    """8 groups are fewer than 20, but more failures than a tenth of 20."""
    module = rlaif(tiny_model, oracle=Stubborn(1))
    said = r"[348] of [48] groups so far have failed, more than .*max_rate allows \(0.1\)"
    with pytest.raises(OracleError, match=said):
        trainer(tmp_path, max_epochs=1).fit(module, data(data_root, 8))


def test_retry_asks_again(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    module = rlaif(
        tiny_model, oracle=Stubborn(1, moody=True), on_oracle_failure=OracleFailure(action="retry", retries=2)
    )
    recorder = Recorder()
    trainer(tmp_path, max_steps=1, callbacks=[recorder]).fit(module, data(data_root, 4))
    assert recorder.metrics[-1]["oracle/failure_rate"] == 0.0


def test_dropped_groups_are_counted_and_stop_the_run_past_the_stated_rate(
    tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    def fit(max_rate: float) -> Recorder:
        recorder = Recorder()
        failure = OracleFailure(action="drop_group", max_rate=max_rate)
        module = rlaif(tiny_model, oracle=Stubborn(4), on_oracle_failure=failure)
        trainer(tmp_path, max_epochs=1, callbacks=[recorder]).fit(module, data(data_root, 8))
        return recorder

    assert fit(0.3).metrics[-1]["oracle/failure_rate"] == 0.25  # ids 0, 4, 8, ... of 64
    with pytest.raises(
        OracleError, match=r"of \d+ groups so far have failed, more than on_oracle_failure.max_rate allows \(0.1\)"
    ):
        fit(0.1)


def test_a_dropped_group_has_no_weight(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    """The gradient of a batch with a dropped group is that of the batch without its prompt."""
    rollout = Scripted(group_size=4, sampling=SamplingParams(max_new_tokens=4))
    drop = OracleFailure(action="drop_group", max_rate=1.0)

    class Without(VideoDataModule):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Delivery:
            kept = [p for p in batch.open().batch.prompts if int(p.id.split("-")[1]) % 4]
            return self.collator(kept)

    grads = []
    for oracle, kind in ((Stubborn(4), VideoDataModule), (ByText(), Without)):
        recorder = Recorder()
        module = rlaif(tiny_model, oracle=oracle, rollout=rollout, on_oracle_failure=drop)
        source = data(data_root, 16)
        source.__class__ = kind
        trainer(tmp_path, max_steps=1, callbacks=[recorder]).fit(module, source)
        grads.append(recorder.grads[0])
    norm = torch.stack([g.norm() for g in grads[1].values()]).norm()
    for name in grads[0]:
        assert float((grads[0][name] - grads[1][name]).norm()) <= 1e-5 * float(norm), name


def test_settings_that_contradict_each_other(tiny_model: str) -> None:
    with pytest.raises(ValueError, match=r"num_updates is 0; it must be 1 or more passes"):
        OracleRLAIF(Policy(tiny_model), ByText(), num_updates=0)
    with pytest.raises(ValueError, match=r"policy.quantization is given without policy.lora"):
        Policy(tiny_model, quantization={"load_in_4bit": True})
    with pytest.raises(ValueError, match=r"policy.sharding.param_dtype is 'int8'"):
        Sharding(param_dtype="int8")
    with pytest.raises(ValueError, match="'sometimes'"):
        Reference(refresh="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="retries must be 1 or more"):
        OracleFailure(action="retry", retries=0)
    with pytest.raises(ValueError, match="kl_coef is -1"):
        GRPORankLoss(kl_coef=-1)


# ------------------------------------------------------------------------------------------------- learning


def test_ranks_teach(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    """An oracle that likes one word: after 25 steps the policy says it, and no longer what it said before."""

    class Likes(Oracle):
        def rank(self, groups: Any) -> Ranking:
            return Ranking(
                ranks=torch.tensor([[0 if "red" in a.split()[:1] else 1 for a in g.answers] for g in groups]).sub(
                    torch.tensor([[0 if any("red" in a.split()[:1] for a in g.answers) else 1] for g in groups])
                )
            )

    module = rlaif(
        tiny_model,
        oracle=Likes(),
        advantage=DCG(),
        loss=GRPORankLoss(kl_coef=0.0),
        rollout=Rollout(group_size=32, sampling=SamplingParams(max_new_tokens=2)),
        lr_scheduler=None,
    )
    source = data(data_root, 8)
    fit = trainer(tmp_path, max_steps=25)
    fit.fit(module, source)
    texts = [module.answer(source.collator([source.datasets["test"][i]]).batch)[0] for i in range(20)]
    assert sum(text.split()[:1] == ["red"] for text in texts) >= 18


# ------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", "float32"), ("bf16-true", "bfloat16"), ("64-true", "float64")]
)
def test_precision_means_what_lightning_says(
    precision: Any, dtype: str, tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    recorder = Recorder()
    module = rlaif(tiny_model)
    module.policy.dtype = dtype
    trainer(tmp_path, max_steps=2, precision=precision, callbacks=[recorder]).fit(module, data(data_root, 4))
    assert {p.dtype for p in module.policy.network.parameters()} == {getattr(torch, dtype)}
    assert recorder.metrics[-1]["train/grad_norm"] > 0
    assert recorder.metrics[0]["train/kl"] == pytest.approx(0.0, abs=1e-6)


# ------------------------------------------------------------------------------- one loss, several implementations


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": ["q_proj", "v_proj"]}])
@pytest.mark.parametrize(("implementation", "fused_head"), [("triton", False), ("torch", True), ("triton", True)])
def test_a_run_is_the_same_with_every_implementation(
    tiny_model: str, data_root: str, tmp_path: Path, implementation: str, fused_head: bool, lora: Any
) -> None:
    """Three optimizer steps on real rollouts: the same gradients, metrics and weights, to rounding."""

    def run(**loss: Any) -> tuple[Recorder, dict[str, torch.Tensor]]:
        torch.manual_seed(0)  # PEFT draws the adapter's first weights
        recorder = Recorder()
        module = rlaif(
            tiny_model,
            loss=GRPORankLoss(kl_coef=0.05, entropy_coef=0.01, delta=3.0, **loss),
            optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        )
        module.policy.lora = lora
        trainer(tmp_path, max_steps=3, callbacks=[recorder]).fit(module, data(data_root, 4))
        return recorder, weights(module)

    expected, expected_weights = run(implementation="torch")
    found, found_weights = run(implementation=implementation, fused_head=fused_head)
    # Advantages of a group sum to zero, and near its random start the tiny model's answers pull alike, so that of
    # LoRA's gradients 2e-5 is left: float32 rounding shows in their fourth digit (measured: 1.05e-4).
    tolerance = 1e-4 if lora is None else 5e-4
    largest = max(grad.abs().max().item() for step in expected.grads for grad in step.values())
    assert largest > 0
    for one, two in zip(expected.grads, found.grads, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert (one[name] - two[name]).abs().max().item() <= tolerance * largest, (name, largest)
    for one, two in zip(expected.metrics, found.metrics, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            if not name.startswith("time/"):
                assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name
    for name, value in expected_weights.items():
        torch.testing.assert_close(found_weights[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="triton runs here")
def test_an_implementation_that_cannot_run_here_is_refused_at_the_start(
    tiny_model: str, data_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orlaif_kernels.row_kernel.INTERPRETED", False)
    module = rlaif(tiny_model, loss=GRPORankLoss(implementation="triton"))
    monkeypatch.setattr(module, "training_step", lambda *_: pytest.fail("sampled before it was refused"))
    with pytest.raises(ValueError, match=r"loss.implementation: .* needs a GPU"):
        trainer(tmp_path, max_steps=1).fit(module, data(data_root, 4))


def test_a_fused_head_refuses_what_it_cannot_reproduce(policy: Policy, batch: PromptBatch) -> None:
    completions = random_completions(policy, len(batch), 2, 3)
    hidden, head = policy.completion_hidden(batch, completions)
    logits = torch.nn.functional.linear(hidden, head["weight"], head["bias"])
    torch.testing.assert_close(logits, policy.completion_logits(batch, completions))
    assert hidden.shape[:2] == logits.shape[:2] == (len(batch) * 2, 3)
    policy.network.lm_head = torch.nn.Sequential(policy.network.lm_head)
    with pytest.raises(ValueError, match=r"loss.fused_head: the LM head is a Sequential"):
        policy.completion_hidden(batch, completions)
