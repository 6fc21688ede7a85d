"""Keeps what training samples: the groups of each step, with ranks, advantages and log-probs, in the run's folder."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from orlaif.distributed.sync import exchange, num_processes, process_index
from orlaif.media import Seen, VideoClip
from orlaif.prompt import Prompt
from orlaif.samples.frames import FrameStore
from orlaif.samples.shards import ShardWriter, next_attempt
from orlaif.training.judged import JudgedBatch, of_answers
from orlaif.training.rlaif import OracleRLAIF

log = logging.getLogger(__name__)


class KeepSamples(Callback):
    """Writes the groups of every training step to ``<run_dir>/samples``, as lines of JSON (``orlaif.samples``).

    Each line is a group: ``step``, ``epoch``, ``batch``, ``process``, ``time`` (seconds since 1970), ``prompt`` (all of
    its fields), ``seen`` (the media that the policy saw: ``path``, ``times_s`` of a clip's frames, and ``sheet``, the
    name of their picture in ``samples/frames``, or null), ``seconds`` of the batch by stage, ``failure`` of the oracle
    or null, ``exchanges`` (what a judge was asked and replied, in its words), and ``answers``, each with ``text``,
    ``rank`` (-1: none), ``score``, ``advantage`` (of tokens: their sum), ``tokens`` (as texts), ``logps`` (of each
    token, by the sampler), ``trainer_logps`` and ``kl`` (sum of log-probs minus the reference's); null if unknown.

    Args:
        share: of the groups to keep, 1 = all. Which ones is a matter of epoch and prompt alone.
        limit_mb: of all samples of a run together, in MB (10^6 bytes); the oldest go for new ones. Of it, frames take
            half at most.
        frames: whose frames are kept as a picture, once for each prompt (``orlaif.samples.frames``): ``as_needed``,
            of what is no file that the page could show them from (clips made in memory, from a URL or an archive, or of
            single images); ``always``, to look at them elsewhere; or ``never``.
        dirpath: folder; by default ``<run_dir>/samples``.

    Raises:
        ValueError: a setting out of its range.
    """

    def __init__(
        self,
        share: float = 1.0,
        limit_mb: float = 1000.0,
        frames: Literal["as_needed", "always", "never"] = "as_needed",
        dirpath: str | None = None,
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"KeepSamples.share is {share}; it must lie in [0, 1]")
        if not limit_mb > 0:
            raise ValueError(f"KeepSamples.limit_mb is {limit_mb}; it must be positive")
        if frames not in ("as_needed", "always", "never"):
            raise ValueError(f"KeepSamples.frames is {frames!r}; it must be as_needed, always or never")
        self.share, self.limit_mb, self.frames, self.dirpath = share, limit_mb, frames, dirpath
        self._writer: ShardWriter | None = None
        self._store: FrameStore | None = None
        self._pieces: dict[int, str] = {}
        self._files: dict[str, bool] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Number this start of the run; nothing is written before there is a group."""
        if trainer.fast_dev_run or not self.share or not isinstance(pl_module, OracleRLAIF):  # type: ignore[attr-defined]
            return
        folder = Path(self.dirpath or Path(trainer.default_root_dir) / "samples")
        attempt = exchange(next_attempt(folder))[0]
        limit = max(1, int(self.limit_mb * 1e6 / num_processes()))
        self._writer = ShardWriter(folder, attempt, process_index(), limit)
        if self.frames != "never":
            self._store = FrameStore(folder / "frames", limit // 2, num_processes())

    def on_groups(self, trainer: Trainer, pl_module: LightningModule, judged: JudgedBatch) -> None:
        """Write the groups of a batch; where that fails, say so once and keep no more."""
        if self._writer is None or not isinstance(pl_module, OracleRLAIF):
            return
        kept = [i for i, prompt in enumerate(judged.batch.prompts) if self._keeps(judged.epoch, prompt.id)]
        tokenizer = pl_module.policy.processor.tokenizer
        try:
            seen = [self._seen(judged.batch.prompts[i], judged.batch.clips[i]) for i in kept]
            self._writer.write(groups_of(judged, kept, seen, lambda ids: self._texts(tokenizer, ids)))
            if self._store is not None:
                self._writer.reserve(self._store.held_bytes)
        except OSError as error:
            log.warning("%s; no more samples are kept of this run", error)
            self._end()

    def _keeps(self, epoch: int, prompt_id: str) -> bool:
        if self.share == 1:
            return True
        digest = hashlib.sha256(f"{epoch}/{prompt_id}".encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64

    def _seen(self, prompt: Prompt, seen: Seen) -> list[dict[str, Any]]:
        """Of each picture and clip that a prompt showed its file, the times of its frames, and its sheet."""
        told, parts = [], prompt.media
        for place, item in enumerate(seen.items):
            of_images = len(parts) == len(seen.items) and getattr(parts[place], "frames", None) is not None
            is_file = not of_images and self._is_file(item.path)
            about: dict[str, Any] = {"path": os.path.abspath(item.path) if is_file else item.path}
            if isinstance(item, VideoClip):
                about["times_s"] = [round(time_s, 3) for time_s in item.pts_s.tolist()]
            keeps = self._store is not None and (self.frames == "always" or not is_file)
            about["sheet"] = self._store.keep(prompt.id, item) if keeps and self._store is not None else None
            told.append(about)
        return told

    def _is_file(self, path: str) -> bool:
        """Asked once of each path in a run."""
        if path not in self._files:
            self._files[path] = os.path.isfile(path)
        return self._files[path]

    def _texts(self, tokenizer: Any, ids: list[int]) -> list[str]:
        """What each token stands for; each is decoded once in a run."""
        for token in set(ids) - self._pieces.keys():
            self._pieces[token] = tokenizer.decode([token])
        return [self._pieces[token] for token in ids]

    def _end(self) -> None:
        writer, store, self._writer, self._store = self._writer, self._store, None, None
        if store is not None:
            try:
                store.close()
            except OSError as error:
                log.warning("%s; frames of the last samples are not kept", error)
            if writer is not None:
                writer.reserve(store.held_bytes)
        if writer is not None:
            writer.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the shard."""
        self._end()


def groups_of(
    judged: JudgedBatch, places: list[int], seen: list[list[dict[str, Any]]], texts: Any
) -> list[dict[str, Any]]:
    """Plain values of the groups at ``places``.

    Args:
        judged: P groups.
        places: of those wanted.
        seen: of each of those, what is told of its media.
        texts: from a list of token ids to a list of texts.
    """
    if not places:
        return []
    completions, ranking = judged.completions.to("cpu"), judged.ranking.to("cpu")
    advantages = of_answers(judged.advantages.detach().cpu(), completions)
    failures = {failure.prompt_id: str(failure) for failure in ranking.failures}
    kl = None
    if judged.reference is not None and completions.logps is not None:
        kl = ((completions.logps - judged.reference.cpu()) * completions.mask).sum(-1)
    ranks, lengths, ids = ranking.ranks.tolist(), completions.lengths.tolist(), completions.ids.tolist()
    columns = {"score": ranking.scores, "advantage": advantages, "kl": kl}
    numbers = {name: None if column is None else _rounded(column) for name, column in columns.items()}
    of_tokens = {"logps": completions.logps, "trainer_logps": judged.trainer}
    rows = {name: None if values is None else _rounded(values) for name, values in of_tokens.items()}
    about: dict[str, Any] = {"step": judged.step, "epoch": judged.epoch, "batch": judged.batch_idx}
    about |= {"process": process_index(), "time": round(time.time(), 3), "seconds": dict(judged.seconds)}
    groups = []
    for i, media in zip(places, seen, strict=True):
        answers = [
            {
                "text": text,
                "rank": ranks[i][j],
                **{name: None if column is None else column[i][j] for name, column in numbers.items()},
                "tokens": texts(ids[i][j][: lengths[i][j]]),
                **{name: None if row is None else row[i][j][: lengths[i][j]] for name, row in rows.items()},
            }
            for j, text in enumerate(completions.texts[i])
        ]
        prompt = judged.batch.prompts[i]
        groups.append(
            {
                **about,
                "prompt": asdict(prompt),
                "seen": media,
                "failure": failures.get(prompt.id),
                "exchanges": [
                    {"asked": one.asked, "replied": one.replied}
                    for one in judged.exchanges
                    if one.prompt_id == prompt.id
                ],
                "answers": answers,
            }
        )
    return groups


def _rounded(values: Tensor) -> list[Any]:
    """To five digits behind the point, as nested lists: a kept log-prob is for reading."""
    return values.to(torch.float64).mul(1e5).round().div(1e5).tolist()
