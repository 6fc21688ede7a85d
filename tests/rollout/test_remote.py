"""Engines and judges in actors of Ray: the same answers, whichever of their processes dies."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from orlaif.distributed.checkpoint_io import newest_checkpoint
from orlaif.oracles import Exchange, PairwiseJudge, ReferenceAnswerOracle
from orlaif.oracles import Remote as RemoteOracle
from orlaif.policy import Policy
from orlaif.rollout import Pipelined, Remote, Rollout, SamplingParams
from orlaif.types import CandidateGroup, Completions, OracleError, Ranking
from tests import processes
from tests.processes import Job, kill, start
from tests.training.test_rlaif import data, rlaif, trainer, weights

ray = pytest.importorskip("ray")
THREE = SamplingParams(max_new_tokens=3)


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    """One session for all, which runs find and leave as it is."""
    handler = signal.getsignal(signal.SIGTERM)
    local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_system_config": {"worker_niceness": 0}}
    ray.init(address="local", log_to_driver=False, num_cpus=2, **local)
    signal.signal(signal.SIGTERM, handler)
    yield
    ray.shutdown()


def alike(one: Any, two: Any) -> bool:
    a, b = weights(one), weights(two)
    return all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("lora", [pytest.param(None, marks=pytest.mark.slow), LORA], ids=["full", "lora"])
def test_actors_sample_what_a_thread_does(
    tiny_model: str, data_root: str, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    """Three steps, two actors; with LoRA the adapter alone is sent."""
    sent: list[int] = []

    class Counted(Remote):
        def take_weights(self, policy: Any, batch: Any) -> Any:
            put = self._running.put

            def counting(value: Any) -> Any:
                sent.append(sum(array.nbytes for array, _, _ in value.values()))
                return put(value)

            self._running.put = counting  # type: ignore[method-assign]
            try:
                return super().take_weights(policy, batch)
            finally:
                self._running.put = put  # type: ignore[method-assign]

    found = []
    for rollout in (Pipelined(Rollout(4, THREE)), Counted(Rollout(4, THREE), actors=2)):
        torch.manual_seed(0)
        # AdamW would make much of a rounding where a gradient is nearly nothing.
        plain = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.3), "lr_scheduler": None}
        module = rlaif(tiny_model, rollout=rollout, **plain)
        module.policy.lora = module.policy.reference.lora = lora
        trainer(tmp_path, max_steps=3, max_epochs=1).fit(module, data(data_root, batch_size=2, seed=3))
        found.append(module)
    assert alike(*found)
    trained = sum(p.numel() * 4 for p in found[1].policy.network.parameters() if p.requires_grad)
    assert sent == [trained] * 3


# ------------------------------------------------------------------------------------------------------------ deaths


def kill_one(pool: Any, number: int) -> None:
    os.kill(pool.pids()[number], signal.SIGKILL)


def answers(remote: Remote, policy: Any, batch: Any) -> Completions:
    generators = [torch.Generator().manual_seed(7 + i) for i in range(len(batch))]
    return remote(remote.take_weights(policy, batch), batch, generators)


@pytest.fixture(scope="module")
def policy(tiny_model: str) -> Policy:
    made = Policy(tiny_model, dtype="float32").load()
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.mul_(2.0)
    return made


@pytest.fixture(scope="module")
def remote(session: None, policy: Policy) -> Iterator[Remote]:
    made = Remote(Rollout(4, THREE), actors=2, max_restarts=100)
    made.begin(policy, whole=False)
    yield made
    made.close()


def random_kills(remote: Remote, policy: Any, batch: Any, number: int, seed: int) -> None:
    """Actors are killed at random moments of a call, before, within and behind it; the answers stay the same."""
    expected = answers(remote, policy, batch)
    draw = random.Random(seed)
    for _ in range(number):
        victim, delay = draw.randrange(2), draw.random() * 0.2
        pid = remote._running.pids()[victim]
        killer = threading.Timer(delay, os.kill, (pid, signal.SIGKILL))
        killer.start()
        for _ in range(3):
            found = answers(remote, policy, batch)
            assert torch.equal(found.ids, expected.ids)
            assert torch.equal(found.logps, expected.logps)
        killer.join()
        found = answers(remote, policy, batch)
        assert found.texts == expected.texts
    assert len(set(remote._running.pids())) == 2


def test_an_actor_that_dies_is_started_again_and_its_prompts_are_asked_anew(
    remote: Remote, policy: Any, batch: Any
) -> None:
    """It has the weights of the version that it is asked for, not those of the checkpoint."""
    with torch.no_grad():
        policy.network.get_input_embeddings().weight.mul_(0.5)
    policy.version += 1
    before = answers(remote, policy, batch)
    assert remote.take_counts() == {"asked_anew": 0.0}
    assert [len(places) for _, places in remote._running.shares(5)] == [2, 3]
    pid = remote._running.pids()[1]
    os.kill(pid, signal.SIGKILL)
    after = answers(remote, policy, batch)
    assert torch.equal(before.ids, after.ids)
    assert torch.equal(before.logps, after.logps)
    assert remote.take_counts() == {"asked_anew": 3.0}
    assert remote._running.pids()[1] != pid


@pytest.mark.slow
def test_actors_that_die_at_ten_random_moments(remote: Remote, policy: Any, batch: Any) -> None:
    random_kills(remote, policy, batch, 10, seed=1)


@pytest.mark.slow
def test_an_actor_that_dies_too_often_ends_the_run(policy: Any, batch: Any) -> None:
    made = Remote(Rollout(4, THREE), max_restarts=0)
    made.begin(policy, whole=False)
    os.kill(made._running.pids()[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"actor 0 has died more often than max_restarts allows \(0\)"):
        answers(made, policy, batch)
    made.close()


class Slow(ReferenceAnswerOracle):
    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        said = [Exchange(prompt_id=one.prompt.id, asked=" or ".join(one.answers), replied="well") for one in groups]
        self.keep_exchanges(said)
        if any("poison" in answer for group in groups for answer in group.answers):
            raise OracleError("Slow", groups[0].prompt.id, "poison")
        time.sleep(0.3)
        return super().rank(groups)


def test_an_oracle_elsewhere_says_what_it_says_here(shapes: Any, policy: Any, batch: Any) -> None:
    groups = [
        CandidateGroup(prompt=prompt, clip=clip, answers=(prompt.answer or "x", "nothing"))
        for prompt, clip in zip(batch.prompts, batch.clips, strict=True)
    ]
    oracle = RemoteOracle(Slow(), actors=2, max_restarts=1)
    oracle.bind(policy)
    kill_one(oracle._pool, 0)
    ranking = oracle.rank(groups)
    assert torch.equal(ranking.ranks, ReferenceAnswerOracle().rank(groups).ranks)
    assert oracle.take_counts() == {"asked_anew": 2.0}
    told = [(one.prompt_id, one.asked, one.replied) for one in oracle.take_exchanges()]
    assert told == [(one.prompt.id, " or ".join(one.answers), "well") for one in groups]
    assert oracle.take_exchanges() == []
    bad = CandidateGroup(prompt=groups[0].prompt, clip=groups[0].clip, answers=("poison", "x"))
    with pytest.raises(OracleError, match="poison"):
        oracle.rank([bad])
    assert [one.asked for one in oracle.take_exchanges()] == ["poison or x"]
    kill_one(oracle._pool, 0)
    with pytest.raises(OracleError, match="died more often than max_restarts allows"):
        oracle.rank(groups)
    oracle.close()


def test_a_judge_that_is_the_policys_base_cannot_be_elsewhere(tiny_model: str) -> None:
    policy = Policy(tiny_model, lora={"r": 4, "target_modules": ["q_proj"]})
    with pytest.raises(ValueError, match="which is the policy's own base: it cannot be elsewhere"):
        RemoteOracle(PairwiseJudge(model=None)).bind(policy)


def test_resources_that_are_not_there_are_refused(policy: Any) -> None:
    with pytest.raises(ValueError, match="resources: 2 actors need 16 GPU, and the Ray session has 0"):
        Remote(Rollout(), actors=2, resources={"num_gpus": 8}).begin(policy, whole=False)
    with pytest.raises(ValueError, match="rollout is Remote, which samples for a training run"):
        Remote(Rollout()).take_counts()


# ------------------------------------------------------------------------------------------------ the trainer's death


def of_the_run(mark: str, actors_only: bool = False) -> list[int]:
    """Processes that have inherited this mark; with ``actors_only``, without Ray's own, whose agents take a minute."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_actor = (folder / "cmdline").read_bytes().startswith(b"ray::Host")
            if mark.encode() in (folder / "environ").read_bytes() and (is_actor or not actors_only):
                found.append(int(folder.name))
        except OSError:  # has ended
            continue
    return found


def nothing_is_left(mark: str, actors_only: bool = False, patience_s: float = 180) -> bool:
    deadline = time.monotonic() + patience_s
    while of_the_run(mark, actors_only) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not of_the_run(mark, actors_only)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_share_the_actors(tiny_model: str, data_root: str, tmp_path: Path, strategy: str) -> None:
    """Three actors for two processes train as two threads do."""
    found = []
    for name, actors in (("threads", 0), ("actors", 3)):
        (tmp_path / name).mkdir()
        settings: dict[str, Any] = {"folder": tiny_model, "root": data_root, "out": str(tmp_path / name / "out.pt")}
        found.append(processes.run(Job(**settings, strategy=strategy, batch=4, steps=3, staleness=1, actors=actors), 2))
    assert all(torch.allclose(found[1]["weights"][n], weight, atol=1e-6) for n, weight in found[0]["weights"].items())


def job(folder: str, root: str, tmp_path: Path, name: str, **more: Any) -> Job:
    (tmp_path / name).mkdir(exist_ok=True)
    out = str(tmp_path / name / "out.pt")
    return Job(
        folder=folder, root=root, out=out, steps=6, batch=2, lora=LORA, staleness=1, actors=1, save_every=1, **more
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_actor_outlives_its_trainer(number: int, tiny_model: str, data_root: str, tmp_path: Path) -> None:
    mark = f"ORLAIF_TEST_{time.monotonic_ns()}"
    progress = tmp_path / "progress"
    (process,), _ = start(job(tiny_model, data_root, tmp_path, "a", mark=mark, progress=str(progress)), 1)
    while not progress.exists() or "done" not in progress.read_text():
        assert process.is_alive()
        time.sleep(0.02)
    assert len(of_the_run(mark, actors_only=True)) == 1
    os.kill(process.pid, number)
    process.join(60)
    assert not process.is_alive()
    assert nothing_is_left(mark, actors_only=number == signal.SIGKILL)


@pytest.mark.slow
def test_a_trainer_that_is_killed_at_random_moments_loses_nothing(
    tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    """It goes on from its last checkpoint, up to ten times, and ends with the weights of the undisturbed run."""
    whole = processes.run(job(tiny_model, data_root, tmp_path, "whole"))
    draw = random.Random(3)
    kills = 0
    while True:
        mark = f"ORLAIF_TEST_{time.monotonic_ns()}"
        path = newest_checkpoint(tmp_path / "a" / "checkpoints")
        resume = None if path is None else str(path)
        (process,), errors = start(job(tiny_model, data_root, tmp_path, "a", mark=mark, resume=resume), 1)
        process.join(draw.uniform(1, 16) if kills < 10 else 120)
        if not process.is_alive():
            assert errors.empty(), errors.get()
            if kills >= 10 or (tmp_path / "a" / "out.pt").exists():
                break
        kills += 1
        kill([process])
        assert nothing_is_left(mark, actors_only=kills < 10)
    assert kills > 0
    rest = torch.load(tmp_path / "a" / "out.pt")
    assert all(torch.equal(rest["weights"][name], weight) for name, weight in whole["weights"].items())
