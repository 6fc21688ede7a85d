from __future__ import annotations

import pickle

import pytest
import torch

from orlaif import Evaluation, VideoDataModule
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.types import (
    AsksQuestions,
    BringsEncoder,
    CandidateGroup,
    Completions,
    Delivery,
    OracleError,
    PromptBatch,
    Ranking,
    VideoClip,
    VideoError,
    VideoPrompt,
)


def clip(**changes: object) -> VideoClip:
    values = {
        "frames": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        "pts_s": torch.tensor([0.0, 0.5], dtype=torch.float64),
        "duration_s": 1.0,
        "path": "a.mp4",
    }
    return VideoClip(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "  "}, r"VideoPrompt.question is empty \(prompt 'q1'\)"),
        ({"video": ""}, r"VideoPrompt.video is empty \(prompt 'q1'\)"),
        ({"id": ""}, "VideoPrompt.id is empty"),
        ({"start_s": -1.0}, "start_s is -1.0"),
        ({"start_s": 2.0, "end_s": 2.0}, "end_s is 2.0 .* after start_s = 2.0"),
    ],
)
def test_a_bad_prompt_names_field_value_and_id(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoPrompt(**{"id": "q1", "video": "a.mp4", "question": "what?", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": torch.zeros(2, 3, 4, 4)}, "expected uint8"),
        ({"frames": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, "F >= 2"),
        ({"pts_s": torch.tensor([0.0, 0.5])}, "expected float64"),
        ({"pts_s": torch.tensor([0.5, 0.5], dtype=torch.float64)}, "does not ascend"),
    ],
)
def test_a_bad_clip_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip(**changes)


def test_prompts_must_be_padded_on_the_left() -> None:
    prompt = VideoPrompt(id="1", video="a.mp4", question="q")
    with pytest.raises(ValueError, match="padded on the left"):
        PromptBatch(
            prompts=(prompt,),
            clips=(clip(),),
            input_ids=torch.tensor([[5, 0]]),
            attention_mask=torch.tensor([[1, 0]]),
            mm_inputs={},
        )


def test_a_delivery_moves_its_batch_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = PromptBatch(
        prompts=(VideoPrompt(id="1", video="a.mp4", question="q"),),
        clips=(clip(),),
        input_ids=torch.tensor([[5, 6]]),
        attention_mask=torch.tensor([[1, 1]]),
        mm_inputs={"pixels": torch.zeros(2)},
    )
    delivery = Delivery(batch=batch, skipped=(VideoError("b.mp4", "no such file"),), decode_s=0.5, wait_s=0.25)
    went: list[object] = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *to, **how: went.append((to[0], tuple(self.shape))) or self)
    moved = delivery.to("cuda:1")
    assert went == [("cuda:1", (1, 2)), ("cuda:1", (1, 2)), ("cuda:1", (2,))]  # inputs, and no frames
    assert (moved.skipped[0].path, moved.decode_s, moved.wait_s) == ("b.mp4", 0.5, 0.25)
    with pytest.raises(ValueError, match=r"Delivery.wait_s is -1"):
        Delivery(batch=batch, wait_s=-1)


def test_the_modules_speak_the_protocols(tiny_model: str) -> None:
    """What the stages and the DataModule ask of each other, they have."""
    assert isinstance(Evaluation(Policy(tiny_model)), BringsEncoder)
    data = VideoDataModule(encoder=ProcessorEncoder(None))
    assert not isinstance(data, AsksQuestions)  # before it is set up, it cannot make a delivery
    data.setup("fit")
    assert isinstance(data, AsksQuestions)
    assert set(data.answers_depend_on()) == {"sampling", "budget", "processor", "system_prompt"}


def test_completions_must_be_padded_on_the_right() -> None:
    ids = torch.zeros(1, 1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="padded on the right"):
        Completions(ids=ids, mask=torch.tensor([[[True, False, True]]]), texts=(("a",),))
    good = Completions(ids=ids, mask=torch.tensor([[[True, True, False]]]), texts=(("a",),))
    assert good.lengths.tolist() == [[2]]
    assert good.group_size == 1


def test_ranking_needs_a_best_answer_and_no_rank_beyond_the_group() -> None:
    Ranking(ranks=torch.tensor([[0, 1, 1, 3], [-1, -1, -1, -1], [0, 0, -1, 1]]))
    with pytest.raises(ValueError, match="best answer"):
        Ranking(ranks=torch.tensor([[1, 2, 1]]))
    with pytest.raises(ValueError, match=r"-1 \.\. 2"):
        Ranking(ranks=torch.tensor([[0, 3, 1]]))
    with pytest.raises(ValueError, match="int64"):
        Ranking(ranks=torch.tensor([[0.0, 1.0]]))


def test_a_group_has_two_answers_or_more() -> None:
    prompt = VideoPrompt(id="p7", video="a.mp4", question="q")
    with pytest.raises(ValueError, match="'p7' has fewer than 2 answers"):
        CandidateGroup(prompt=prompt, clip=clip(), answers=("only",))


def test_exceptions_survive_a_worker_process() -> None:
    video = pickle.loads(pickle.dumps(VideoError("a.mp4", "is empty")))
    assert (str(video), video.path, video.cause) == ("a.mp4: is empty", "a.mp4", "is empty")
    oracle = pickle.loads(pickle.dumps(OracleError("Judge", "p1", "time-out")))
    assert str(oracle) == "oracle Judge gave no ranking for prompt 'p1': time-out"
