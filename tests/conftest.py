"""Shared fixtures: a tiny model, a small embedded data set, and the real clips beside the checkout."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports the kernels
    os.environ["TRITON_INTERPRET"] = "1"

from transformers.utils import logging as transformers_logging

from orlaif.data.datamodule import Collator
from orlaif.data.video import UniformSampling
from orlaif.demo.shapes import ShapesDataset, words
from orlaif.demo.tiny import make_tiny_model
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.types import Completions, PromptBatch
from tests.interpreter import remember_builtins

REPO = Path(__file__).parents[1]
SHARED_VIDEOS = REPO.parent / "shared" / "videos"

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    remember_builtins()
warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
transformers_logging.disable_progress_bar()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if "vllm" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs vLLM, which is not installed here; make vllm-test"))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; none here"))


@pytest.fixture(autouse=True)
def nothing_under_way() -> None:
    """A test that calls parts of a step by hand may leave a stage open, and the next one's line would show it."""
    if "orlaif.stages" in sys.modules:
        sys.modules["orlaif.stages"].forget()


def reads_media() -> bool:
    """Whether clips can be written and read here: torchcodec is installed, and finds FFmpeg's shared libraries."""
    if importlib.util.find_spec("torchcodec") is None:
        return False
    import torchcodec

    return torchcodec.ffmpeg_major_version is not None


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    if not SHARED_VIDEOS.is_dir():
        pytest.skip(f"needs the clips in {SHARED_VIDEOS}")
    return SHARED_VIDEOS


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Qwen3-VL of 2 layers and 32 hidden units."""
    folder = str(tmp_path_factory.mktemp("tiny"))
    make_tiny_model(folder, words(), hidden_size=32, num_layers=2)
    return folder


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded data set: 64 clips to train on, 10 to validate, 20 to test."""
    if not reads_media():
        pytest.skip("clips are rendered and decoded by torchcodec, which is not installed here or finds no FFmpeg")
    root = str(tmp_path_factory.mktemp("data"))
    for split, size in (("train", 64), ("validation", 10), ("test", 20)):
        ShapesDataset(root, split, size=size).prepare()
    return root


@pytest.fixture(scope="session")
def shapes(data_root: str) -> ShapesDataset:
    return ShapesDataset(data_root, "train", size=64)


def make_policy(folder: str, dtype: str = "float32", seed: int = 0, **settings: object) -> Policy:
    """A loaded policy whose logits are far from uniform, so that a wrong token or position shows."""
    policy = Policy(folder, dtype=dtype, **settings).load()  # type: ignore[arg-type]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, parameter in policy.network.named_parameters():
            if parameter.ndim > 1 and parameter.std() < 0.09:  # those of orlaif.tiny are large already
                parameter.mul_(5.0)
            elif "norm" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        # Tied to the embedding, a random head repeats the token it was given for ever.
        head = policy.network.lm_head
        head.weight = torch.nn.Parameter(torch.randn_like(head.weight) * 0.5)
    return policy


@pytest.fixture
def policy(tiny_model: str) -> Policy:
    return make_policy(tiny_model)


@pytest.fixture
def batch(policy: Policy, shapes: ShapesDataset) -> PromptBatch:
    """Five prompts, one of each kind, of different lengths."""
    collator = Collator(ProcessorEncoder(policy.processor), UniformSampling(8))
    return collator([shapes[i] for i in range(5)]).batch


def random_completions(policy: Policy, p: int, g: int, t: int, seed: int = 0) -> Completions:
    """Random ragged completions without placeholder tokens."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = torch.tensor([i for i in range(len(policy.processor.tokenizer)) if i not in policy.placeholder_ids])
    ids = vocabulary[torch.randint(len(vocabulary), (p, g, t), generator=generator)]
    lengths = torch.randint(1, t + 1, (p, g), generator=generator)
    lengths[0, 0] = t
    mask = torch.arange(t) < lengths[..., None]
    return Completions(ids=ids, mask=mask, texts=tuple(tuple("x" for _ in range(g)) for _ in range(p)))
