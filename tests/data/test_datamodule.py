from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image

from orlaif import VideoDataModule
from orlaif.data.collator import BadVideos
from orlaif.data.datamodule import Collator
from orlaif.data.datasets import JsonlDataset
from orlaif.data.epochs import EpochLoader
from orlaif.data.share import Share
from orlaif.data.video import UniformSampling, decode_clip
from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder, video_metadata
from orlaif.policy.hub import load_processor
from orlaif.types import Delivery, PromptBatch, VideoError, VideoPrompt


def module(tiny_model: str, train: JsonlDataset, **settings: object) -> VideoDataModule:
    encoder = ProcessorEncoder(load_processor(tiny_model))
    made = VideoDataModule(train=train, sampling=UniformSampling(8), encoder=encoder, **settings)  # type: ignore[arg-type]
    made.setup("fit")
    return made


def ids(loader: object) -> list[tuple[str, ...]]:
    return [tuple(prompt.id for prompt in sealed.open().batch.prompts) for sealed in loader]  # type: ignore[attr-defined]


def test_the_processor_sees_the_frames_at_their_own_times(policy: Policy, shapes: ShapesDataset) -> None:
    """Qwen3-VL writes the middle of each frame pair into the prompt: frames at 0, 0.25, ... s."""
    clip = decode_clip(shapes[0], UniformSampling(8))
    metadata = video_metadata(clip)
    assert metadata.frames_indices == [0, 250, 500, 750, 1000, 1250, 1500, 1750]
    assert (metadata.fps, metadata.total_num_frames) == (1000.0, 2000)
    batch = Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([shapes[0]]).batch
    text = policy.processor.tokenizer.decode(batch.input_ids[0]).replace(" ", "")
    assert [f"<{t}seconds>" in text for t in (0.1, 0.6, 1.1, 1.6)] == [True] * 4
    assert int((batch.input_ids == policy.config.video_token_id).sum()) == 4 * 4


def test_batches_are_padded_on_the_left_and_aligned(policy: Policy, shapes: ShapesDataset) -> None:
    batch = Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([shapes[i] for i in range(5)]).batch
    assert [p.id for p in batch.prompts] == [f"train-{i:05d}" for i in range(5)]
    assert [c.path for c in batch.clips] == [p.video for p in batch.prompts]
    assert bool(batch.attention_mask[:, -1].all())
    assert len(set(batch.attention_mask.sum(-1).tolist())) > 1
    for i, prompt in enumerate(batch.prompts):
        text = policy.processor.tokenizer.decode(batch.input_ids[i][batch.attention_mask[i].bool()])
        assert prompt.question in text
    alone = Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([shapes[3]]).batch
    n = int(alone.attention_mask.sum())
    assert torch.equal(batch.input_ids[3, -n:], alone.input_ids[0])
    per = len(alone.mm_inputs["pixel_values_videos"])
    assert torch.equal(
        batch.mm_inputs["pixel_values_videos"][3 * per : 4 * per], alone.mm_inputs["pixel_values_videos"]
    )


def test_the_order_is_a_function_of_seed_and_epoch(tiny_model: str, shapes: ShapesDataset) -> None:
    def order(seed: int, epoch: int) -> list[tuple[str, ...]]:
        loader = module(tiny_model, shapes, batch_size=16, seed=seed).train_dataloader()
        loader.go_on(epoch)
        return ids(loader)

    first = order(0, 0)
    assert sorted(x for batch in first for x in batch) == [f"train-{i:05d}" for i in range(64)]
    assert order(0, 0) == first
    assert order(1, 0) != first
    assert order(0, 1) != first


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_goes_on_where_its_state_was_taken(tiny_model: str, shapes: ShapesDataset, num_workers: int) -> None:
    """With a worker and without, as it would have without (a worker's start costs its imports)."""

    def loader(num_workers: int = 0) -> EpochLoader:
        return module(tiny_model, shapes, batch_size=8, seed=3, num_workers=num_workers).train_dataloader()

    whole = loader()
    whole.go_on(2)
    everything = ids(whole)
    resumed = loader(num_workers)
    resumed.go_on(2, samples=24)
    assert ids(resumed) == everything[3:]
    assert len(everything) == 8
    fresh = loader()
    fresh.go_on(3)
    assert ids(resumed) == ids(fresh) != everything  # the next epoch begins at its beginning


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_take_turns_in_one_order_behind_the_same_rows(shapes: ShapesDataset, world: int) -> None:
    """Behind 16 rows of all processes together, the other 48, each once, whatever their number."""
    whole = [shapes[i].id for i in shapes.epoch(0, 5, Share(), False, None).indices]
    parts = []
    for index in range(world):
        share = Share(first=16, process_index=index, num_processes=world)
        parts.append([shapes[i].id for i in shapes.epoch(0, 5, share, False, None).indices])
    assert [row for turn in zip(*parts, strict=True) for row in turn] == whole[16:]


def with_bad_videos(shapes: ShapesDataset, folder: Path, bad: dict[int, bytes | None], n: int = 24) -> JsonlDataset:
    rows = []
    for i in range(n):
        path = folder / f"{i}.mp4"
        shutil.copy(shapes[i].video, path)
        if i in bad:
            path.unlink()
            if bad[i] is not None:
                path.write_bytes(bad[i])
        rows.append({"id": f"x-{i}", "video": str(path), "question": shapes[i].question, "answer": shapes[i].answer})
    index = folder / "data.jsonl"
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlDataset(str(index))


BAD = {2: None, 7: b"", 13: b"rubbish" * 100}


def test_a_bad_video_stops_the_run_by_default(tiny_model: str, shapes: ShapesDataset, tmp_path: Path) -> None:
    loader = module(tiny_model, with_bad_videos(shapes, tmp_path, BAD), batch_size=8).train_dataloader()
    with pytest.raises(VideoError, match=r"(2|7|13).mp4: "):
        ids(loader)


def test_skipped_videos_are_left_out_and_listed(tiny_model: str, shapes: ShapesDataset, tmp_path: Path) -> None:
    dataset = with_bad_videos(shapes, tmp_path, BAD)
    loader = module(tiny_model, dataset, batch_size=8, on_bad_video="skip").train_dataloader()
    deliveries = [sealed.open() for sealed in loader]
    names = {prompt.id for delivery in deliveries for prompt in delivery.batch.prompts}
    assert names == {f"x-{i}" for i in range(24) if i not in BAD}
    assert {Path(e.path).name for delivery in deliveries for e in delivery.skipped} == {"2.mp4", "7.mp4", "13.mp4"}


class Nothing(LightningModule):
    """Trains on nothing, so that only the data speaks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []

    def training_step(self, delivery: Delivery, batch_idx: int) -> torch.Tensor:
        self.seen.append(len(delivery.batch))
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("rate", "stops"), [(0.2, False), (0.05, True)])
def test_too_many_skips_stop_the_run(
    rate: float, stops: bool, tiny_model: str, shapes: ShapesDataset, tmp_path: Path
) -> None:
    source = VideoDataModule(
        train=with_bad_videos(shapes, tmp_path, BAD),
        sampling=UniformSampling(8),
        encoder=ProcessorEncoder(load_processor(tiny_model)),
        batch_size=1,
        on_bad_video="skip",
        max_bad_rate=rate,
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_epochs=1, default_root_dir=str(tmp_path), **quiet)
    net = Nothing()
    if stops:
        with pytest.raises(VideoError, match=r"videos so far are bad, more than data.max_bad_rate allows \(0.05\)"):
            trainer.fit(net, source)
    else:
        trainer.fit(net, source)
        assert sorted(net.seen) == [0] * 3 + [1] * 21  # an empty batch is a step without weight, not a missing one


def test_before_the_20th_video_the_rate_is_that_of_20() -> None:
    empty = torch.zeros(0, 1, dtype=torch.int64)
    nothing = PromptBatch(prompts=(), clips=(), input_ids=empty, attention_mask=empty, mm_inputs={})
    bad = Delivery(batch=nothing, skipped=(VideoError("v.mp4", "is broken"),))
    short = BadVideos(0.05)
    short.count(bad)  # 1 of 20 is 5 %
    with pytest.raises(VideoError, match=r"v.mp4: is broken; 2 of 2 videos so far are bad, more than .* \(0.05\)"):
        short.count(bad)
    long = BadVideos(0.05)
    long.counts = (59, 2)
    long.count(bad)  # 3 of 60 is 5 %
    with pytest.raises(VideoError, match="4 of 61"):
        long.count(bad)


def test_mistakes_are_named(tiny_model: str, shapes: ShapesDataset) -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        VideoDataModule(batch_size=0)
    with pytest.raises(ValueError, match="on_bad_video is 'ignore'"):
        VideoDataModule(on_bad_video="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data.num_workers must be 0"):
        VideoDataModule(num_workers=2, decode_device="cuda")
    with pytest.raises(ValueError, match="batch_size is 100 on 1 processes, but train has 64 rows"):
        module(tiny_model, shapes, batch_size=100).train_dataloader()
    empty = VideoDataModule(encoder=ProcessorEncoder(load_processor(tiny_model)))
    empty.setup("fit")
    with pytest.raises(ValueError, match=r"data.train is missing"):
        empty.train_dataloader()
    with pytest.raises(ValueError, match=r"data.encoder is missing: without a Trainer, give one"):
        VideoDataModule(train=shapes).setup("fit")
    with pytest.raises(ValueError, match=r"data.encoder is missing: with Nothing, which has no prompt_encoder"):
        Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit(
            Nothing(), VideoDataModule(train=shapes)
        )
    with pytest.raises(ValueError, match=r"data.system_prompt is 'Be brief.', but data.encoder is given"):
        VideoDataModule(encoder=ProcessorEncoder(None), system_prompt="Be brief.")


def test_a_clip_that_the_processor_does_not_take_is_a_bad_video(
    tiny_model: str, shapes: ShapesDataset, tmp_path: Path
) -> None:
    """Qwen's processors refuse frames whose sides differ by a factor above 200."""
    prompts = [shapes[0]]
    for name, size in (("long", (2000, 4)), ("tall", (4, 2000))):
        frames = [tmp_path / f"{name}-{i}.png" for i in range(2)]
        for i, path in enumerate(frames):
            Image.new("RGB", size, (i * 99, 0, 0)).save(path)
        video = str(tmp_path / name)
        prompts.append(VideoPrompt(id=name, video=video, question="q?", frames=tuple(map(str, frames))))
    prompts.append(shapes[1])
    encoder = ProcessorEncoder(load_processor(tiny_model))
    with pytest.raises(VideoError, match=r"long: the model's processor does not take 2 frames of 2000 x 4 \("):
        Collator(encoder, UniformSampling(2))(prompts)
    collator = Collator(encoder, UniformSampling(2), on_bad_video="skip")
    delivery = collator(prompts)
    assert [prompt.id for prompt in delivery.batch.prompts] == [shapes[0].id, shapes[1].id]
    assert [error.path for error in delivery.skipped] == [str(tmp_path / "long"), str(tmp_path / "tall")]
    assert torch.equal(delivery.batch.input_ids, collator([shapes[0], shapes[1]]).batch.input_ids)
    nothing = collator(prompts[1:3])
    assert (len(nothing.batch), len(nothing.skipped)) == (0, 2)


def test_a_prompt_beyond_the_context_is_named_or_left_out(policy: Policy, shapes: ShapesDataset) -> None:
    """With ``skip`` the longer of two prompts is left out and listed, as a bad video is; else it is an error."""
    short = replace(shapes[0], question="what ?")
    long = replace(shapes[1], question="what color is the circle ? " * 20)
    whole = ProcessorEncoder(policy.processor)([short], [decode_clip(short, UniformSampling(4))])
    encoder = ProcessorEncoder(policy.processor, longest=int(whole.input_ids.shape[1]))
    delivery = Collator(encoder, UniformSampling(4), on_bad_video="skip")([short, long])
    assert [prompt.id for prompt in delivery.batch.prompts] == [short.id]
    (error,) = delivery.skipped
    assert f"prompt {long.id!r} has" in str(error)
    with pytest.raises(VideoError, match="the model's context has room for"):
        Collator(encoder, UniformSampling(4))([short, long])
