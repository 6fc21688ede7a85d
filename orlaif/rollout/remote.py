"""Rollouts by engines in processes of their own, on this machine or others: actors of Ray.

Each actor holds an engine, and the policy's checkpoint, which it loads itself. What is trained (with LoRA, the adapter)
goes through Ray's object store to each machine once per update, and so do the frames of the prompts; an actor encodes
them as the trainer did. The trainer's processes share the actors, each its own where there are enough.

Source: Ray (Moritz et al. 2018, arXiv 1712.05889).

Shapes: P prompts, G completions per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orlaif.distributed.actors import Call, Placement, Pool
from orlaif.distributed.shelf import Shelf
from orlaif.distributed.sync import num_processes, process_index
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.twin import settings_of, still
from orlaif.rollout.base import BaseRollout
from orlaif.rollout.correction import ImportanceCorrection
from orlaif.types import Completions, Prompt, PromptBatch, Seen


@dataclass(frozen=True, kw_only=True)
class Request:
    """Prompts on their way to an actor.

    Args:
        prompts: p prompts.
        clips: theirs.
        texts: as the model reads them.
        tokens: p lists of token ids, as the trainer has them.
        seeds: of each prompt's generator.
        cast: dtype of the trainer's autocast, if it is on.
    """

    prompts: tuple[Prompt, ...]
    clips: tuple[Seen, ...]
    texts: tuple[str, ...]
    tokens: tuple[list[int], ...]
    seeds: tuple[int, ...]
    cast: torch.dtype | None


class EngineHost:
    """An engine and its policy, in the process of an actor.

    Args:
        engine: samples.
        settings: arguments of the policy.
    """

    def __init__(self, engine: BaseRollout, settings: dict[str, Any]) -> None:
        self.engine = engine
        self.policy = Policy(**settings)
        device = torch.device("cuda" if torch.cuda.is_available() and engine.samples_by_policy else "cpu")
        self.policy.load(device).network.to(device).eval().requires_grad_(False)
        self.encoder = ProcessorEncoder(self.policy.processor, family=self.policy.family)
        self.version: int | None = None

    def sample(self, version: int, weights: list[Any], request: Request) -> Completions:
        """Completions [p, G, T] of a request, on the CPU, by the weights of ``version``.

        Args:
            version: of the weights.
            weights: where they are in the object store; fetched if they are not the ones that are here.
            request: p prompts.

        Raises:
            ValueError: other tokens of a prompt than the trainer has.
        """
        if self.version != version:
            self._take(version, weights[0])
        batch = self.encoder(request.prompts, request.clips, request.texts).to(self.policy.device)
        for prompt, expected, ids, mask in zip(
            batch.prompts, request.tokens, batch.input_ids, batch.attention_mask, strict=True
        ):
            if ids[mask.bool()].tolist() != expected:
                raise ValueError(
                    f"prompt {prompt.id!r} has {len(expected)} tokens by the trainer, and others by the policy's own "
                    "processor, which rollout.Remote encodes by; leave data.processor and data.encoder out"
                )
        generators = [torch.Generator(self.policy.device).manual_seed(seed) for seed in request.seeds]
        kind = self.policy.device.type
        with torch.autocast(kind, dtype=request.cast, enabled=request.cast is not None):
            return self.engine(self.policy, batch, generators).to("cpu")

    @torch.no_grad()
    def _take(self, version: int, weights: Any) -> None:
        import ray

        own = dict(self.policy.network.named_parameters())
        for name, packed in ray.get(weights).items():
            own[name].copy_(_unpacked(packed))
        self.version = self.policy.version = version


def _packed(tensor: Tensor) -> tuple[Any, torch.dtype, tuple[int, ...]]:
    """A tensor as an array of bytes, which processes of a machine share without a copy."""
    there = tensor.detach().to("cpu", copy=True).contiguous()  # fsdp2 frees what it has gathered
    return there.reshape(-1).view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape)


def _unpacked(packed: tuple[Any, torch.dtype, tuple[int, ...]]) -> Tensor:
    array, dtype, shape = packed
    return torch.frombuffer(memoryview(array), dtype=dtype).view(shape)


class Remote(BaseRollout):
    """A rollout by engines that are actors of Ray (``pip install '.[ray]'``), ahead of the step.

    Args:
        engine: samples in each actor: :class:`~orlaif.rollout.Rollout`, which is then a copy of the policy, or
            :class:`~orlaif.rollout.VLLMRollout`.
        actors: how many there are, for all processes of the run together.
        resources: of each; see :class:`~orlaif.distributed.actors.Placement`.
        staleness: as of :class:`~orlaif.rollout.Pipelined`; 0 samples within the step.
        max_restarts: how often an actor that has died is started again; -1: always.
        address: of a Ray session; by default a new one on this machine.
        correction: for older weights and other machines; by default the engine's, or else the default one.

    Raises:
        ValueError: a setting is out of its range, or Ray is not installed; when a run begins, resources that the
            session does not have.
    """

    def __init__(
        self,
        engine: BaseRollout,
        actors: int = 1,
        resources: Mapping[str, float] | None = None,
        staleness: int = 1,
        max_restarts: int = 3,
        address: str | None = None,
        correction: ImportanceCorrection | None = None,
    ) -> None:
        if staleness < 0:
            raise ValueError(f"rollout.staleness is {staleness}; it must be 0 (off) or more batches")
        if engine.samples_apart:
            raise ValueError(f"rollout.engine is {type(engine).__name__}, which samples apart itself; name its engine")
        correction = correction or engine.correction or ImportanceCorrection()
        super().__init__(engine.group_size, engine.sampling, engine.importance_cap, correction)
        self.placement = Placement(actors=actors, resources=resources, max_restarts=max_restarts, address=address)
        self.engine, self.staleness = engine, staleness
        self._pool: Pool | None = None
        self._shelf: Shelf | None = None
        self._weights: tuple[int, list[Any]] | None = None

    @property
    def samples_apart(self) -> bool:
        """Always: on a thread that waits for the actors."""
        return True

    def prepare(self, policy: Policy, longest: Callable[[], tuple[int, str] | None]) -> None:
        """Refuse what the engine cannot do."""
        self.engine.prepare(policy, longest)

    def check_room(self, batch: PromptBatch) -> None:
        """Refuse what the engine has no room for."""
        self.engine.check_room(batch)

    def begin(self, policy: Policy, whole: bool) -> None:
        """Start the actors, on which the policy's checkpoint is loaded."""
        if self._pool is None:
            self._pool = Pool(self.placement, EngineHost, self.engine, settings_of(policy))
            self._shelf = Shelf(self.placement.address) if num_processes() > 1 else None
            self._pool.wait()

    def take_weights(self, policy: Policy, batch: PromptBatch) -> Policy:
        """Put what is trained into the object store, if it has changed; each machine fetches it once."""
        if self._weights is None or self._weights[0] != policy.version:
            where: list[Any] = []
            with policy.gathered():
                if process_index() == 0:
                    trained = {n: _packed(p) for n, p in policy.network.named_parameters() if p.requires_grad}
                    where = [self._running.put(trained)]
            self._weights = policy.version, where if self._shelf is None else self._shelf.share(where)
        return still(policy)

    @property
    def _running(self) -> Pool:
        if self._pool is None:
            raise ValueError("rollout is Remote, which samples for a training run; name its engine in its place here")
        return self._pool

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Sequence[torch.Generator]) -> Completions:
        """G completions of each prompt, by the actors."""
        kind = batch.input_ids.device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        tokens = [ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
        weights, calls = self._weights, []
        if weights is None or weights[0] != policy.version:
            raise ValueError("rollout is Remote, and take_weights() was not called since the last update")
        for actor, places in self._running.shares(len(batch)):
            request = Request(
                prompts=tuple(batch.prompts[i] for i in places),
                clips=tuple(batch.clips[i] for i in places),
                texts=tuple(batch.texts[i] for i in places),
                tokens=tuple(tokens[i] for i in places),
                seeds=tuple(generator[i].initial_seed() for i in places),
                cast=cast,
            )
            arguments = (*weights, self._running.put(request))
            calls.append(Call(actor=actor, method="sample", arguments=arguments, weight=len(places)))
        parts = self._running.ask(calls)
        return joined(parts, policy.pad_id).to(batch.input_ids.device)

    def take_counts(self) -> dict[str, float]:
        """Prompts that were asked anew since this was last asked, because their actor died."""
        return {"asked_anew": float(self._running.take_count())}

    def close(self) -> None:
        """End the actors."""
        for held in (self._shelf, self._pool):
            if held is not None:
                held.close()
        self._pool = self._shelf = self._weights = None


def joined(parts: Sequence[Completions], pad_id: int) -> Completions:
    """Completions of several batches as those of one, filled up with ``pad_id``."""
    longest = max(part.ids.shape[-1] for part in parts)

    def together(tensors: Sequence[Tensor], filler: int) -> Tensor:
        pad = torch.nn.functional.pad
        return torch.cat([pad(one, (0, longest - one.shape[-1]), value=filler) for one in tensors])

    logps = [part.logps for part in parts if part.logps is not None]
    return Completions(
        ids=together([part.ids for part in parts], pad_id),
        mask=together([part.mask for part in parts], 0),
        texts=tuple(text for part in parts for text in part.texts),
        logps=together(logps, 0) if len(logps) == len(parts) else None,
    )
