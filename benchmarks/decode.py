"""Decoding: clips per second and memory, orlaif against what others load videos with, in one run.

For F = 8, 32 and 64 frames, evenly spaced, of the real clips beside the checkout and of a generated 720p file of ten
minutes: `decode_clip`; transformers' `load_video` with torchcodec and with PyAV; decord, where it can be imported; and
PyAV used directly (decoding on, or, where frames lie more than five seconds apart, from the keyframe before each). All
with as many threads as there are cores, one clip per thread; times are medians of repeats that take turns.

Then the DataModule: its training loader, the model's processor left out, against the bare decoder with as many threads.

    .venv/bin/python -m benchmarks.decode [--videos ../shared/videos] [--output outputs/bench/decode.json]

Frames are the same within rounding of times (checked: each library's clip has F frames, and its mean picture lies
within a few grey values of ours); decord and PyAV are no part of the development set: `pip install decord av`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks.harness import about, forget_peak, installed, spread, status
from orlaif.data.datamodule import VideoDataModule
from orlaif.data.datasets import JsonlDataset
from orlaif.data.epochs import EpochLoader
from orlaif.data.loader import Sealed
from orlaif.data.video import UniformSampling, decode_clip
from orlaif.demo.demo import quiet
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.types import Delivery, PromptBatch, VideoPrompt

FRAMES = (8, 32, 64)
Decode = Callable[[str, int], torch.Tensor]


def generate(path: str, minutes: int = 10) -> None:
    """A 720p H.264 file at 30 fps with a keyframe every 250 frames, as phones and x264 write it."""
    source = f"testsrc2=size=1280x720:rate=30:duration={60 * minutes}"
    coding = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, *coding, path]
    subprocess.run(command, check=True)


def ours(path: str, frames: int) -> torch.Tensor:
    """u8[F, 3, H, W]."""
    return decode_clip(path, UniformSampling(frames)).frames


def places(total: int, frames: int) -> np.ndarray:
    """Middles of equal parts, as UniformSampling has them."""
    return np.minimum(((np.arange(frames) + 0.5) * total / frames).astype(int), total - 1)


def of_transformers(backend: str) -> Decode:
    """transformers' ``load_video`` with one of its backends."""
    from transformers.video_utils import load_video

    def decode(path: str, frames: int) -> torch.Tensor:
        def wanted(metadata: Any, **_: Any) -> np.ndarray:
            return places(metadata.total_num_frames, frames)

        load: Any = load_video
        video, _ = load(path, backend=backend, sample_indices_fn=wanted)
        return torch.as_tensor(np.asarray(video))

    return decode


def of_decord() -> Decode:
    """decord, one thread a clip."""
    import decord

    def decode(path: str, frames: int) -> torch.Tensor:
        reader = decord.VideoReader(path, num_threads=1)
        return torch.from_numpy(reader.get_batch(places(len(reader), frames)).asnumpy())

    return decode


def of_pyav() -> Decode:
    """PyAV: for each wanted time, on to it, by a seek where a keyframe lies between."""
    import av

    def decode(path: str, frames: int) -> torch.Tensor:
        shown = []
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            base = float(stream.time_base)
            start = (stream.start_time or 0) * base
            length = float(stream.duration * base) if stream.duration else container.duration / av.time_base
            half = 0.5 / float(stream.average_rate)
            source: Any = container.decode(stream)
            last: Any = next(source)
            following: Any = last
            for wanted in start + (np.arange(frames) + 0.5) * length / frames:
                if length / frames > 5:
                    container.seek(int(wanted / base), stream=stream)
                    source = container.decode(stream)
                    following = last = next(source)
                while following is not None and following.time <= wanted + half:
                    last, following = following, next(source, None)
                shown.append(last.to_ndarray(format="rgb24"))
        return torch.from_numpy(np.stack(shown))

    return decode


def contenders() -> dict[str, Decode]:
    """All that can be imported here."""
    decoders: dict[str, Decode] = {"orlaif": ours}
    makers: dict[str, Callable[[], Decode]] = {
        "transformers (torchcodec)": lambda: of_transformers("torchcodec"),
        "transformers (pyav)": lambda: of_transformers("pyav"),
        "decord": of_decord,
        "pyav": of_pyav,
    }
    for name, make in makers.items():
        try:
            decoders[name] = make()
        except ImportError as error:
            print(f"{name}: left out ({error})")
    return decoders


def measure(decoders: dict[str, Decode], paths: list[str], frames: int, threads: int, repeats: int) -> dict[str, Any]:
    """Clips per second (median of repeats) and the bytes by which each raises the peak."""
    report: dict[str, Any] = {}
    for name, decode in list(decoders.items()):
        try:
            means = [float(ours(path, frames).float().mean()) for path in paths]
            for path, mean in zip(paths, means, strict=True):
                clip = decode(path, frames)
                if abs(float(clip.float().mean()) - mean) > 4:
                    raise ValueError(f"{os.path.basename(path)}: another picture")
        except Exception as error:  # whatever a library cannot read is part of the result
            report[name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    working = [name for name in decoders if name not in report]
    times: dict[str, list[float]] = {name: [] for name in working}
    peaks: dict[str, int] = {}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            for name in working:
                before, start = forget_peak(), time.perf_counter()
                for _ in pool.map(lambda path, decode=decoders[name]: decode(path, frames) is None, paths * threads):
                    pass
                times[name].append((time.perf_counter() - start) / (len(paths) * threads))
                peaks[name] = max(peaks.get(name, 0), status("VmHWM") - before)
    for name in working:
        per_clip = spread(times[name])
        report[name] = {**per_clip, "clips_per_s": 1e3 / per_clip["median_ms"], "peak_mb": peaks[name] / 2**20}
    return report


def through_the_datamodule(paths: list[str], frames: int, threads: int, repeats: int) -> dict[str, Any]:
    """Clips per second of the training loader and of the bare decoder with as many threads."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"id": str(i), "video": os.path.abspath(paths[i % len(paths)]), "question": "q"} for i in range(64)]
        file = os.path.join(folder, "d.jsonl")
        with open(file, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        dataset = JsonlDataset(file)
        data = VideoDataModule(train=dataset, sampling=UniformSampling(frames), decode_threads=threads)
        collator = data.make_collator(ProcessorEncoder(None))

        def collate(prompts: Any) -> Sealed:
            """The DataModule's decoding on its threads, without tokenising."""
            clips = collator.decode(prompts)
            assert all(not isinstance(clip, Exception) for clip in clips)
            empty = torch.zeros(0, 1, dtype=torch.int64)
            nothing = PromptBatch(prompts=(), clips=(), input_ids=empty, attention_mask=empty, mm_inputs={})
            return Sealed(Delivery(batch=nothing))

        loader = EpochLoader(dataset, batch_size=8, collate_fn=collate, ahead=data.ahead)
        prompts = dataset.prompts

        def bare(prompt: VideoPrompt) -> bool:
            return decode_clip(prompt, data.sampling) is None

        times: dict[str, list[float]] = {"datamodule": [], "bare": []}
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(repeats):
                start = time.perf_counter()
                for _ in loader:
                    pass
                times["datamodule"].append((time.perf_counter() - start) / len(prompts))
                start = time.perf_counter()
                list(pool.map(bare, prompts))
                times["bare"].append((time.perf_counter() - start) / len(prompts))
    report: dict[str, Any] = {name: spread(values) for name, values in times.items()}
    return {**report, "ratio": report["datamodule"]["median_ms"] / report["bare"]["median_ms"]}


def main() -> None:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", default="../shared/videos")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--output", default="outputs/bench/decode.json")
    arguments = parser.parse_args()
    quiet()
    threads = os.cpu_count() or 1
    torch.set_num_threads(1)
    decoders = contenders()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        long = os.path.join(folder, "720p.mp4")
        generate(long, arguments.minutes)
        names = sorted(name for name in os.listdir(arguments.videos) if not name.startswith("."))
        every = {name: [os.path.join(arguments.videos, name)] for name in names} | {"720p, ten minutes": [long]}
        for name, paths in every.items():
            for frames in FRAMES:
                results[f"{name}/{frames}"] = measure(decoders, paths, frames, threads, arguments.repeats)
                shown = {
                    k: round(v["clips_per_s"], 2) if "error" not in v else "-"
                    for k, v in results[f"{name}/{frames}"].items()
                }
                print(f"{name}, {frames} frames: {shown}", flush=True)
        clip = [os.path.join(arguments.videos, "nasa_13013.mp4")]
        loader = {str(n): through_the_datamodule(clip, n, threads, arguments.repeats) for n in FRAMES}
        print({n: round(row["ratio"], 3) for n, row in loader.items()})
    report = {
        "what": "milliseconds per clip, clips per second over all threads, and peak memory, by library and frames",
        "threads": threads,
        "results": results,
        "datamodule_against_bare_decoder": loader,
        **about(cuda=False),
        "versions": installed("torch", "torchcodec", "transformers", "decord", "av"),
    }
    os.makedirs(os.path.dirname(os.path.abspath(arguments.output)), exist_ok=True)
    with open(arguments.output, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
