"""A judge behind an OpenAI-compatible chat-completions server: vLLM, ``transformers serve``, a commercial service.

All requests of a step are in flight together, up to a bound (``orlaif.openai_client``, which retries and keeps
replies). What still fails, and every reply that is not exactly one order of all candidates, is an OracleError of that
group.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchvision.io import encode_jpeg
from torchvision.transforms.v2.functional import resize

from orlaif.answer_format import Sees
from orlaif.openai_client import ChatClient
from orlaif.oracles.aggregate import borda_points
from orlaif.oracles.asking import AsksServer, all_of
from orlaif.oracles.base import Exchange, Judge, ranking_of
from orlaif.oracles.prompting import (
    LISTWISE_INSTRUCTIONS,
    MOST_CANDIDATES,
    VERDICT_INSTRUCTIONS,
    Ballot,
    ballots,
    check_orders,
    inquiry,
    parse_order,
    parse_verdicts,
)
from orlaif.types import CandidateGroup, OracleError, Picture, Ranking, Seen, VideoClip

T = TypeVar("T")


class HTTPJudge(AsksServer, Judge):
    """Asks a server to order the candidates of each group, as a list.

    Args:
        client: the server, and how it is asked.
        num_ballots: orders in which the candidates of a group are shown; their rankings are averaged (Borda), which
            cancels a preference for places; 1 to 52.
        num_frames: frames of the clip that are sent, evenly spaced.
        frame_height: pixels to which larger frames are shrunk.
        instructions: what the judge is told; it must ask for the reply that ``parse_order`` reads.
        seed: of the ballots.
        sees: what of a completion the judge is shown: ``answer``, ``thoughts``, or ``both`` (the text as it is).

    Raises:
        ValueError: a setting is out of its range.
    """

    gives_scores = False
    most_answers = MOST_CANDIDATES

    def __init__(
        self,
        client: ChatClient,
        num_ballots: int = 2,
        num_frames: int = 8,
        frame_height: int = 336,
        instructions: str = LISTWISE_INSTRUCTIONS,
        seed: int = 0,
        sees: Sees = "answer",
    ) -> None:
        check_orders("num_ballots", num_ballots)
        for name, value in (("num_frames", num_frames), ("frame_height", frame_height)):
            if value < 1:
                raise ValueError(f"oracle.{name} is {value}; it must be 1 or more")
        super().__init__(client, sees)
        self.num_ballots, self.num_frames, self.frame_height = num_ballots, num_frames, frame_height
        self.instructions, self.seed = instructions, seed

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups.

        Returns:
            Dense ranks i64[P, G]; groups of which a request failed or a reply could not be read in ``failures``.
        """
        return ranking_of(self.ask_about(groups, self._rank_one), len(groups[0].answers))

    async def _rank_one(self, group: CandidateGroup) -> Tensor:
        """Points of the group's answers over all ballots."""
        if len(set(group.answers)) == 1:
            return torch.zeros(len(group.answers), dtype=torch.float64)  # nothing to decide
        shown = ballots(group, self.num_ballots, self.seed)
        shown_media = await asyncio.to_thread(_content, group.clip, self.num_frames, self.frame_height)
        rankings = await all_of([self._ballot(ballot, shown_media) for ballot in shown])
        return borda_points(torch.tensor(rankings))

    async def _ballot(self, ballot: Ballot, media: list[dict[str, Any]]) -> list[int]:
        def read(reply: str) -> list[int]:
            return ballot.ranks(parse_order(reply, ballot.labels))

        return await self._ask(ballot.group, self.instructions, ballot.asked(), media, read)

    def verdicts(self, groups: Sequence[CandidateGroup], questions: Sequence[str]) -> list[Tensor | OracleError]:
        """Answer every question about every answer, one request for each different answer with all questions.

        Args:
            groups: P groups.
            questions: Q questions to be answered with yes or no.

        Returns:
            Of each group f64[G, Q], 1 = yes and 0 = no; or why there is none.
        """
        return self.ask_about(groups, lambda group: self._verdicts_of(group, questions))

    async def _verdicts_of(self, group: CandidateGroup, questions: Sequence[str]) -> Tensor:
        def read(reply: str) -> list[bool]:
            return parse_verdicts(reply, len(questions))

        texts = list(dict.fromkeys(group.answers))
        asked = [inquiry(group.prompt.question, text, questions) for text in texts]
        media = await asyncio.to_thread(_content, group.clip, self.num_frames, self.frame_height)
        said = await all_of([self._ask(group, VERDICT_INSTRUCTIONS, one, media, read) for one in asked])
        return torch.tensor(said, dtype=torch.float64)[[texts.index(answer) for answer in group.answers]]

    async def _ask(
        self,
        group: CandidateGroup,
        instructions: str,
        asked: str,
        media: list[dict[str, Any]],
        read: Callable[[str], T],
    ) -> T:
        """What ``read`` makes of the reply; the reply is kept, readable or not."""

        def kept(reply: str) -> T:
            self.keep_exchanges([Exchange(prompt_id=group.prompt.id, asked=asked, replied=reply)])
            return read(reply)

        return await self.client.ask(instructions, [*media, {"type": "text", "text": asked}], kept)


def _content(seen: Seen, num_frames: int, height: int) -> list[dict[str, Any]]:
    """What is seen as parts of a message: frames and images, each named where a prompt shows more than one thing."""
    content: list[dict[str, Any]] = []
    for number, item in enumerate(seen.items, 1):
        if len(seen.items) > 1:
            what = f"{number}: an image" if isinstance(item, Picture) else f"{number}: frames of a video"
            content.append({"type": "text", "text": f"Shown {what}"})
        urls = _urls(item.pixels[None], height) if isinstance(item, Picture) else _data_urls(item, num_frames, height)
        content += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return content


def _data_urls(clip: VideoClip, num_frames: int, height: int) -> list[str]:
    """Evenly spaced frames as JPEG data URLs."""
    picks = torch.linspace(0, len(clip.frames) - 1, min(num_frames, len(clip.frames))).round().long()
    return _urls(clip.frames[picks.to(clip.frames.device)], height)


def _urls(frames: Tensor, height: int) -> list[str]:
    """Frames u8[F, 3, H, W] as JPEG data URLs, shrunk to ``height`` where they are higher."""
    frames = frames.cpu()
    if frames.shape[-2] > height:
        frames = resize(frames, [height, max(1, round(frames.shape[-1] * height / frames.shape[-2]))])
    jpegs = [encode_jpeg(frame, quality=90).numpy().tobytes() for frame in frames]
    return [f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" for jpeg in jpegs]
