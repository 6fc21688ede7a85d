"""Loading ahead: order, bounds, errors, interruptions; streams, curricula and the cache of clips."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from orlaif import Evaluation, VideoDataModule
from orlaif.data.clip_cache import ClipCache
from orlaif.data.curriculum import AnswerLengthCurriculum
from orlaif.data.datasets import JsonlDataset, StreamingDataset
from orlaif.data.loader import Sealed, prefetched
from orlaif.data.share import Share
from orlaif.data.video import PixelBudget, Sampling, UniformSampling, decode_clip
from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.hub import load_processor
from orlaif.types import Delivery, PromptBatch, VideoError, VideoPrompt
from tests.data.test_datamodule import ids, module
from tests.forked import Forked


def prompts(n: int) -> list[list[VideoPrompt]]:
    return [[VideoPrompt(id=str(i), video="v", question="q")] for i in range(n)]


class Slow:
    """A collate function that takes its time, most for the first batch, and counts what is under way."""

    def __init__(self, fails_at: int = -1) -> None:
        self.fails_at = fails_at
        self.started = self.given = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, one: Sequence[VideoPrompt]) -> Sealed:
        number = int(one[0].id)
        with self.lock:
            self.started += 1
            self.most = max(self.most, self.started - self.given)
        time.sleep(0.05 if number == 0 else 0.01)
        if number == self.fails_at:
            raise VideoError("v.mp4", "no good")
        empty = torch.zeros(0, 1, dtype=torch.int64)
        batch = PromptBatch(prompts=(), clips=(), input_ids=empty, attention_mask=empty, mm_inputs={"n": number})
        return Sealed(Delivery(batch=batch))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_come_in_order_and_few_are_under_way(ahead: int) -> None:
    collate = Slow()
    for expected, sealed in enumerate(prefetched(prompts(12), collate, ahead)):
        assert sealed.open().batch.mm_inputs["n"] == expected
        collate.given += 1
        time.sleep(0.02)
    assert collate.given == 12
    assert collate.most <= ahead + 1


def loading_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("orlaif-data")}


def test_an_error_comes_where_its_batch_would_have_come() -> None:
    before = loading_threads()  # of another test, whose error holds its loader still
    seen: list[int] = []
    source = (sealed.open().batch.mm_inputs["n"] for sealed in prefetched(prompts(12), Slow(fails_at=4), 3))
    with pytest.raises(VideoError, match=r"v.mp4: no good"):
        seen.extend(source)
    assert seen == [0, 1, 2, 3]
    assert loading_threads() <= before


def test_stopping_early_leaves_no_thread() -> None:
    before = loading_threads()
    source = prefetched(prompts(100), Slow(), 3)
    next(source)
    assert loading_threads() - before
    source.close()
    assert loading_threads() <= before


def load_slowly(tiny_model: str, data_root: str) -> None:
    """A loop over batches that takes a second for each, while four are loaded ahead."""
    data = module(tiny_model, ShapesDataset(data_root, "train", size=64), batch_size=2, ahead=4)
    for _ in data.train_dataloader():
        print("batch", flush=True)
        time.sleep(1)


def test_ctrl_c_ends_a_run_that_loads_ahead(tiny_model: str, data_root: str) -> None:
    """SIGINT in the middle of an epoch: the process is gone within seconds."""
    run = Forked(load_slowly, tiny_model, data_root)
    deadline = time.monotonic() + 60
    while not run.said()[0].startswith("batch\n"):
        assert run.poll() is None, run.said()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    start = time.perf_counter()
    _, errors = run.communicate(timeout=30)
    assert time.perf_counter() - start < 10
    assert "KeyboardInterrupt" in errors


@pytest.mark.parametrize("ahead", [1, 4])
def test_what_is_loaded_does_not_depend_on_how_far_ahead(tiny_model: str, shapes: ShapesDataset, ahead: int) -> None:
    loaders = [module(tiny_model, shapes, batch_size=8, ahead=n).train_dataloader() for n in (0, ahead)]
    for one, other in zip(*loaders, strict=True):
        assert [p.id for p in one.open().batch.prompts] == [p.id for p in other.open().batch.prompts]
        assert torch.equal(one.open().batch.input_ids, other.open().batch.input_ids)
        assert torch.equal(
            one.open().batch.mm_inputs["pixel_values_videos"], other.open().batch.mm_inputs["pixel_values_videos"]
        )


def test_the_step_waits_only_where_loading_is_slower(tiny_model: str, shapes: ShapesDataset) -> None:
    """Eight batches of 8 small clips, and a step that takes 0.2 s."""
    waits = []
    for sealed in module(tiny_model, shapes, batch_size=8, ahead=2).train_dataloader():
        waits.append(sealed.wait_s)
        time.sleep(0.2)
    assert waits[0] > 0
    assert sorted(waits[1:])[-2] < 0.05  # a busy machine may delay one


def test_a_steps_own_tokenizing_does_not_meet_the_loaders(tiny_model: str, shapes: ShapesDataset) -> None:
    """A fast tokenizer keeps padding as a state; calls without it, between those of the threads, broke batches."""
    policy = Policy(tiny_model, dtype="float32")
    data = VideoDataModule(train=shapes, sampling=UniformSampling(2), batch_size=2, ahead=4)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=Evaluation(policy), world_size=1, global_rank=0
    )
    data.setup("fit")
    stop = threading.Event()

    def step() -> None:
        while not stop.is_set():
            assert isinstance(policy.processor.tokenizer("red").input_ids[0], int)

    other = threading.Thread(target=step)
    other.start()
    try:
        for _ in range(4):
            assert sum(len(sealed.open().batch) for sealed in data.train_dataloader()) == 64
    finally:
        stop.set()
        other.join()


# ---------------------------------------------------------------------------------------------------------- curriculum


def test_easy_questions_come_first(tmp_path: Path, tiny_model: str) -> None:
    rows = [
        {"id": str(i), "video": "v.mp4", "question": "q", "answer": " ".join(["word"] * (1 + i % 10))}
        for i in range(40)
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    dataset = JsonlDataset(str(path))
    order = AnswerLengthCurriculum().order(dataset, seed=1)
    assert sorted(order) == list(range(40))
    assert {i % 10 for i in order[:20]} == {0, 1, 2, 3, 4}
    assert order[:20] != sorted(order[:20])
    assert order != AnswerLengthCurriculum().order(dataset, seed=2)
    three = AnswerLengthCurriculum(stages=4).order(dataset, seed=1)
    assert {i % 10 for i in three[-10:]} == {7, 8, 9}
    easy = dataset.epoch(0, 1, Share(stop=20), False, AnswerLengthCurriculum())
    assert {int(prompt.id) % 10 for prompt in easy} == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match=r"stages is 1; it must be 2 or more"):
        AnswerLengthCurriculum(stages=1)


# ------------------------------------------------------------------------------------------------------------- streams


def stream(shapes: ShapesDataset, **settings: Any) -> StreamingDataset:
    return StreamingDataset(JsonlDataset(shapes.path), **{"shuffle_buffer": 16, "seed": 1, **settings})


def test_a_stream_is_shuffled_by_seed_and_epoch(shapes: ShapesDataset) -> None:
    def order(epoch: int, **settings: Any) -> list[str]:
        return [prompt.id for prompt in stream(shapes, **settings).shuffled(epoch)]

    everything = [prompt.id for prompt in shapes.prompts]
    assert sorted(order(0)) == everything
    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=2)
    assert order(0, shuffle_buffer=0) == everything


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_stream_evenly(shapes: ShapesDataset, world: int) -> None:
    parts = []
    for index in range(world):
        share = Share(process_index=index, num_processes=world)
        parts.append([prompt.id for prompt in stream(shapes).epoch(0, 0, share, False, None)])
    assert [len(part) for part in parts] == [64 // world] * world
    assert len({name for part in parts for name in part}) == 64 // world * world


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_goes_on_at_the_exact_sample(tiny_model: str, shapes: ShapesDataset, num_workers: int) -> None:
    """With a worker and without, as it would have without (a worker's start costs its imports)."""

    def loader(num_workers: int = 0) -> Any:
        made = VideoDataModule(
            train=stream(shapes),
            sampling=UniformSampling(4),
            encoder=ProcessorEncoder(load_processor(tiny_model)),
            batch_size=8,
            num_workers=num_workers,
        )
        made.setup("fit")
        return made.train_dataloader()

    whole = loader()
    everything = ids(whole)
    resumed = loader(num_workers)
    resumed.go_on(0, samples=24)
    assert ids(resumed) == everything[3:]
    assert len(everything) == 8
    assert ids(resumed) == ids(whole)  # and the next epoch


class Watcher(LightningModule):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[str] = []

    def training_step(self, delivery: Delivery, batch_idx: int) -> torch.Tensor:
        self.seen += [prompt.id for prompt in delivery.batch.prompts]
        return self.weight.sum() * 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_checkpoint_within_an_epoch_resumes_at_the_exact_sample(
    tmp_path: Path, tiny_model: str, shapes: ShapesDataset, streaming: bool
) -> None:
    """Eleven steps of 8 in one go, and from a checkpoint behind the fifth: the same samples."""

    def run(steps: int, ckpt_path: str | None = None) -> list[str]:
        train: Any = stream(shapes) if streaming else JsonlDataset(shapes.path)
        data = VideoDataModule(
            train=train,
            sampling=UniformSampling(4),
            encoder=ProcessorEncoder(load_processor(tiny_model)),
            batch_size=8,
            seed=1,
        )
        watcher = Watcher()
        keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
        trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, callbacks=[keep], enable_progress_bar=False)
        trainer.fit(watcher, datamodule=data, ckpt_path=ckpt_path)
        return watcher.seen

    whole = run(11)
    first = run(5)
    second = run(11, str(tmp_path / "step=5.ckpt"))
    assert len(whole) == 88
    assert first + second == whole
    assert max(Counter(whole[:64]).values()) == 1


def test_a_stream_says_early_what_is_wrong(tmp_path: Path, tiny_model: str, shapes: ShapesDataset) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "1"}\n')
    with pytest.raises(ValueError, match="line 1: field 'video' is missing"):
        StreamingDataset(JsonlDataset(str(path))).load()
    with pytest.raises(ValueError, match=r"data.val is a stream; only data.train may be one"):
        VideoDataModule(val=stream(shapes), encoder=ProcessorEncoder(load_processor(tiny_model))).val_dataloader()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data.curriculum needs to know all answers"):
        VideoDataModule(train=stream(shapes), curriculum=AnswerLengthCurriculum())
    with pytest.raises(ValueError, match="shuffle_buffer is -1"):
        stream(shapes, shuffle_buffer=-1)


def test_rows_of_the_library_datasets(tmp_path: Path, shapes: ShapesDataset) -> None:
    """A folder as on the hub, streamed, through the same adapter."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(shapes.path, folder / "train.jsonl")
    dataset = JsonlDataset(f"datasets://{folder}?split=train", video_root=os.path.dirname(shapes.path))
    assert dataset.prompts == shapes.prompts
    with pytest.raises(ValueError, match="unknown setting 'spilt'"):
        JsonlDataset(f"datasets://{folder}?spilt=train").load()
    with pytest.raises(ValueError, match=r"datasets:///nowhere/at/all: cannot be opened"):
        JsonlDataset("datasets:///nowhere/at/all").load()


# ----------------------------------------------------------------------------------------------------- the clips' cache


def test_a_kept_clip_is_the_decoded_one(tmp_path: Path, shapes: ShapesDataset) -> None:
    video = tmp_path / "a.mp4"
    shutil.copy(shapes[0].video, video)
    prompt = VideoPrompt(id="1", video=str(video), question="q")
    cache = ClipCache(str(tmp_path / "cache"))
    fresh, kept = (cache(prompt, UniformSampling(4)) for _ in range(2))
    assert (cache.hits, cache.misses) == (1, 1)
    expected = decode_clip(prompt, UniformSampling(4))
    for clip in (fresh, kept):
        assert torch.equal(clip.frames, expected.frames)
        assert torch.equal(clip.pts_s, expected.pts_s)
        assert clip.duration_s == expected.duration_s
    segment = VideoPrompt(id="1", video=str(video), question="q", start_s=0.5)
    for other in ((prompt, UniformSampling(5)), (segment, UniformSampling(4))):
        cache(*other)
    cache(prompt, UniformSampling(4), budget=PixelBudget(per_frame=1024))
    assert (cache.hits, cache.misses) == (1, 4)
    shutil.copy(shapes[1].video, video)  # another file of that name
    os.utime(video, ns=(1, 1))
    assert not torch.equal(cache(prompt, UniformSampling(4)).frames, fresh.frames)
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_the_cache_keeps_no_failures_and_mends_broken_files(tmp_path: Path, shapes: ShapesDataset) -> None:
    cache = ClipCache(str(tmp_path / "cache"))
    missing = VideoPrompt(id="1", video=str(tmp_path / "none.mp4"), question="q")
    for _ in range(2):
        with pytest.raises(VideoError, match="no such file"):
            cache(missing, UniformSampling(4))
    cache(shapes[0], UniformSampling(4))
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert torch.equal(cache(shapes[0], UniformSampling(4)).frames, decode_clip(shapes[0], UniformSampling(4)).frames)
    assert cache.hits == 0
    cache(shapes[0], UniformSampling(4))
    assert cache.hits == 1

    class Mine(Sampling):
        def times(self, start_s: float, end_s: float) -> torch.Tensor:
            return torch.tensor([start_s, (start_s + end_s) / 2], dtype=torch.float64)

    with pytest.raises(ValueError, match="needs a sampling that is a dataclass; Mine is none"):
        cache(shapes[0], Mine())


# ------------------------------------------------------------------------------------------------------- a bad data set


def spoilt(good: bytes, kind: int, path: Path) -> None:
    """Ten ways in which a video can be bad."""
    if kind == 0:
        return  # missing
    if kind == 1:
        path.mkdir()
        return
    content = {
        2: b"",
        3: b"\x00" * 4096,
        4: b"this is no video\n" * 50,
        5: good[: len(good) // 2],
        6: good[:200],
        7: good[len(good) // 3 :],
        8: good.replace(b"moov", b"moox"),
        9: good.replace(b"avc1", b"xxxx").replace(b"avcC", b"xxxx"),
    }[kind]
    path.write_bytes(content)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory, data_root: str) -> tuple[JsonlDataset, set[str]]:
    """1,000 rows of which 50 are bad in ten ways, and the names of the bad ones."""
    folder = tmp_path_factory.mktemp("thousand")
    shapes = ShapesDataset(data_root, "train", size=64)
    rows, bad = [], set()
    for i in range(1000):
        video = shapes[i % 64].video
        if i % 20 == 7:
            path = folder / f"bad{i}.mp4"
            spoilt(Path(video).read_bytes(), i // 20 % 10, path)
            video = str(path)
            bad.add(video)
        rows.append({"id": str(i), "video": video, "question": shapes[i % 64].question})
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return JsonlDataset(str(folder / "d.jsonl")), bad


def loading(data: JsonlDataset, model: str, **settings: Any) -> tuple[Watcher, VideoDataModule]:
    module_ = VideoDataModule(
        train=data,
        sampling=UniformSampling(2),
        encoder=ProcessorEncoder(load_processor(model)),
        batch_size=10,
        **settings,
    )
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    watcher = Watcher()
    trainer.fit(watcher, datamodule=module_)
    return watcher, module_


def test_fifty_bad_videos_of_a_thousand_are_skipped_counted_and_listed(
    thousand: tuple[JsonlDataset, set[str]], tiny_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    data, bad = thousand
    assert len(bad) == 50
    with caplog.at_level("WARNING"):
        watcher, module_ = loading(data, tiny_model, on_bad_video="skip", max_bad_rate=0.2)
    assert len(watcher.seen) == 950
    assert module_.bad_videos.counts == (1000, 50)
    listed = [r.getMessage() for r in caplog.records if r.getMessage().startswith("skipped bad video")]
    assert len(listed) == 50
    assert all(any(path in line for line in listed) for path in bad)


def test_the_first_bad_video_stops_a_strict_run(thousand: tuple[JsonlDataset, set[str]], tiny_model: str) -> None:
    data, bad = thousand
    with pytest.raises(VideoError) as raised:
        loading(data, tiny_model)
    assert raised.value.path in bad


def test_ten_thousand_clips_leave_nothing_behind(shapes: ShapesDataset) -> None:
    """Resident memory and open files after 1,000 and after 11,000 clips."""

    def measured() -> tuple[float, int]:
        gc.collect()
        lines = Path("/proc/self/status").read_text().splitlines()
        rss = int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
        return rss, len(os.listdir("/proc/self/fd"))

    def decode(n: int) -> None:
        for i in range(n):
            decode_clip(shapes[i % 64], UniformSampling(8))

    decode(1000)
    memory, files = measured()
    decode(10_000)
    assert measured()[0] - memory < 30  # MB
    assert measured()[1] == files
