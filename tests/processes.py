"""Training runs in processes of their own: one, or several as torchrun would start them. Imports are paid once.

A run is described by :class:`Job`, which can be pickled; what it leaves is read from its file.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import warnings
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.distributed.tensor import DTensor

from orlaif.data.preferences import PreferenceJsonl
from orlaif.data.replay import HardPromptReplay
from orlaif.data.video import FpsSampling
from orlaif.distributed import checkpoint_io, fsdp2
from orlaif.losses import GRPORankLoss
from orlaif.oracles import PairwiseJudge
from orlaif.policy import Policy
from orlaif.rollout import BaseRollout, Pipelined, Remote, Rollout, SamplingParams
from orlaif.training.base import PolicyModule
from orlaif.training.callbacks import Checkpointing, ExportHuggingFace
from orlaif.training.ranker import ListwiseRankerTraining, PreferenceRankerTraining
from orlaif.training.rlaif import Reference
from orlaif.types import OracleError
from tests.forked import context
from tests.training.test_rlaif import ByText, Scripted, data, rlaif, sft, trainer

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
#: Seconds after which a run counts as hung. One that takes 5 s alone has taken 60 s beside others; two such limits are
#: within pytest's own for a test, which neither says which processes hang nor ends them.
LIMIT = 290.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run."""

    folder: str
    root: str
    out: str
    strategy: str = "auto"
    steps: int = 2
    batch: int = 8
    lora: dict[str, Any] | None = None
    stage: str = "rlaif"
    scripted: bool = False
    optimizer: str = "sgd"
    rate: float = 0.1
    save_every: int | None = None
    resume: str | None = None
    bad: dict[int, tuple[str, ...]] = field(default_factory=dict)
    refresh: str = "never"
    sharding: Any = None
    policy: dict[str, Any] = field(default_factory=dict)
    module: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    kl_coef: float = 0.05
    fused_head: bool = False
    max_new_tokens: int = 4
    export: bool = False
    oracle_fails_on: str | None = None
    progress: str | None = None
    dies_at_save: tuple[str, int] | None = None
    preferences: str | None = None
    command: str = "fit"
    leave_out: tuple[str, ...] = ()
    own_judge: bool = False
    merge: bool = False
    rollout: BaseRollout | None = None
    staleness: int = 0
    #: Ends of clips in seconds, by prompt, and frames per second: clips of unequal lengths.
    ends: dict[str, float] = field(default_factory=dict)
    fps: float | None = None
    actors: int = 0
    #: Share of an epoch that is a replay of hard prompts, whose rates are measured meanwhile.
    replay: float | None = None
    mark: str = ""


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Saver(Callback):
    """Gradients and metrics of every step, and the weights at the end."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.grads: list[dict[str, torch.Tensor]] = []
        self.metrics: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.policy.network.named_parameters()
        self.grads.append({name: whole(p.grad).clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        parameters = dict(pl_module.policy.network.named_parameters())
        if getattr(pl_module, "head", None) is not None:
            parameters["head"] = pl_module.head.weight
        weights = {name: whole(p.detach()).clone() for name, p in parameters.items()}
        sharded = sum(isinstance(p, DTensor) for p in parameters.values())
        if trainer.is_global_zero:
            found = {"grads": self.grads, "metrics": self.metrics, "weights": weights, "sharded": sharded}
            sharing = getattr(pl_module, "sequence", None)
            found["shares_frames"] = sharing is not None and sharing.shares_frames
            found |= {"totals": pl_module.totals, "step": trainer.global_step}
            torch.save(found | {"data": trainer.datamodule.state_dict()}, self.out)


class Scored(ByText):
    """About half of all texts are right, the same ones always."""

    def rank(self, groups: Any) -> Any:
        ranking = super().rank(groups)
        right = [[float(zlib.crc32(answer.encode()) % 2) for answer in group.answers] for group in groups]
        return replace(ranking, scores=torch.tensor(right))


class Failing(ByText):
    """Does not know one prompt."""

    def __init__(self, prompt_id: str) -> None:
        self.prompt_id = prompt_id

    def rank(self, groups: Any) -> Any:
        if any(group.prompt.id == self.prompt_id for group in groups):
            raise OracleError("ByText", self.prompt_id, "no idea")
        return super().rank(groups)


def oracle_of(job: Job) -> Any:
    if job.own_judge:
        return PairwiseJudge(model=None)
    if job.replay is not None:
        return Scored()
    return ByText() if job.oracle_fails_on is None else Failing(job.oracle_fails_on)


def build(job: Job) -> PolicyModule:
    sampling = SamplingParams(max_new_tokens=job.max_new_tokens, temperature=1.5)
    rollout: Any = job.rollout or (Scripted if job.scripted else Rollout)(group_size=4, sampling=sampling)
    if job.actors:
        rollout = Remote(rollout, actors=job.actors, staleness=job.staleness)
    elif job.staleness:
        rollout = Pipelined(rollout, job.staleness)
    kind: Any = torch.optim.SGD if job.optimizer == "sgd" else torch.optim.AdamW
    torch.manual_seed(0)  # PEFT draws the adapter's first weights
    if job.stage in ("ranker", "listwise"):
        stage = PreferenceRankerTraining if job.stage == "ranker" else ListwiseRankerTraining
        module: Any = stage(Policy(job.folder), optimizer=lambda params: kind(params, lr=job.rate), seed=5)
    elif job.stage == "sft":
        module = sft(job.folder)
        module.optimizer = lambda params: kind(params, lr=job.rate)
    else:
        module = rlaif(
            job.folder,
            rollout=rollout,
            oracle=oracle_of(job),
            loss=GRPORankLoss(kl_coef=job.kl_coef, entropy_coef=0.01, fused_head=job.fused_head),
            optimizer=lambda params: kind(params, lr=job.rate),
            reference=Reference(refresh=job.refresh),
            **job.module,
        )
    module.policy = Policy(job.folder, **{"dtype": "float32", "lora": job.lora, "sharding": job.sharding, **job.policy})
    return module


class Progress(Callback):
    """Appends to a file: where the run began, and every step that it has done."""

    def __init__(self, path: str) -> None:
        self.path = path

    def _note(self, word: str, step: int) -> None:
        with open(self.path, "a") as file:
            file.write(f"{word} {step}\n")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._note("from", trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            self._note("done", trainer.global_step)


def die_at_save(when: str, number: int) -> None:
    """Kill this process at its so many-th checkpoint, just before or after that gets its name."""
    publish, saves = checkpoint_io.publish, [0]

    def publish_or_die(path: Path) -> None:
        saves[0] += 1
        if saves[0] == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        publish(path)
        if saves[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    # A folder's checkpoint is published by the strategy, a file's by the plugin.
    checkpoint_io.publish = fsdp2.publish = publish_or_die


def shorten(train: Any, ends: dict[str, float]) -> None:
    """Let the clips of some prompts end early."""
    load = train.load

    def load_shorter() -> None:
        load()
        train._prompts = [replace(p, end_s=ends.get(p.id, p.end_s)) for p in train.prompts]

    train.load = load_shorter


def fit(job: Job, rank: int, world: int) -> None:
    module, saver = build(job), Saver(job.out)
    callbacks: list[Callback] = [saver]
    if job.progress is not None:
        callbacks.append(Progress(job.progress))
    if job.dies_at_save is not None:
        die_at_save(*job.dies_at_save)
    if job.save_every:
        callbacks.append(Checkpointing(job.save_every, dirpath=str(Path(job.out).parent / "checkpoints")))
    if job.export:
        callbacks.append(ExportHuggingFace(merge=job.merge))
    shares = world // job.policy.get("sequence_parallel", 1)
    source = data(job.root, job.batch // shares, **job.data)
    if job.replay is not None:
        source.datasets["train"] = HardPromptReplay(source.datasets["train"], share=job.replay, measure=True)  # type: ignore[arg-type]
    if job.fps is not None:
        source.sampling = FpsSampling(fps=job.fps)
        shorten(source.datasets["train"], job.ends)
    if lost := job.bad.get(rank):
        train: Any = source.datasets["train"]
        load = train.load

        def load_with_bad() -> None:
            load()
            train._prompts = [replace(p, video="/nowhere.mp4") if p.id in lost else p for p in train.prompts]

        train.load = load_with_bad
    options: dict[str, Any] = {"max_steps": job.steps, "max_epochs": 100, "callbacks": callbacks, **job.trainer}
    if world > 1 or job.strategy != "auto":
        options |= {"strategy": job.strategy, "devices": world}
    if job.save_every:
        options["enable_checkpointing"] = True
    if job.preferences is not None:
        source.datasets |= {name: PreferenceJsonl(job.preferences) for name in ("train", "val")}
    source.leave_out = {{"validate": "val"}.get(job.command, job.command): set(job.leave_out)}
    made = trainer(Path(job.out).parent, **options)
    if job.command == "fit":
        made.fit(module, source, ckpt_path=job.resume, weights_only=False)
    else:
        found = getattr(made, job.command)(module, source)
        if made.is_global_zero:
            torch.save(found, job.out)


def _child(job: Job, rank: int, world: int, port: int, errors: Any) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if job.mark:
        os.environ[job.mark] = "1"
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background has ignored
    if world > 1:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world),
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "test",
        }
    try:
        fit(job, rank, world)
    except Exception as error:
        errors.put((rank, f"{type(error).__name__}: {error}"))
        raise


def start(job: Job, world: int) -> tuple[list[Any], Any]:
    """Start the processes of a run; returns them, and a queue of (rank, error)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    errors = context().Queue()
    started = [context().Process(target=_child, args=(job, rank, world, port, errors)) for rank in range(world)]
    for process in started:
        process.start()
    return started, errors


def kill(started: list[Any]) -> None:
    for process in started:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    for process in started:
        process.join()


def errors_of(job: Job, world: int, timeout: float = LIMIT) -> dict[int, str]:
    """Run; the error of each process that had one. Fails if the run hangs."""
    started, errors = start(job, world)
    deadline = time.monotonic() + timeout
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
    hung = [process for process in started if process.is_alive()]
    kill(started)
    found = {}
    while not errors.empty():
        rank, error = errors.get()
        found[rank] = error
    assert not hung, f"{len(hung)} of {world} processes hang; errors: {found}"
    return found


def run(job: Job, world: int = 1, timeout: float = LIMIT) -> dict[str, Any]:
    """Run to the end; what the first process found."""
    errors = errors_of(job, world, timeout)
    assert not errors, errors
    return torch.load(job.out)
