"""ExportHuggingFace among other callbacks, and at the end of a run that had ended before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from safetensors.torch import load_file

from orlaif import SupervisedFineTuning, VideoDataModule
from orlaif.data.video import UniformSampling
from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.training.callbacks import Checkpointing, ExportHuggingFace

LORA = {"r": 4, "target_modules": ["q_proj"]}


class Fit:
    """Runs of three steps in one folder."""

    def __init__(self, model: str, data_root: str, folder: Path) -> None:
        self.model, self.data_root, self.folder = model, data_root, folder

    def __call__(
        self, *callbacks: Any, name: str = "run", lora: Any = None, ckpt: str | None = None, **trainer: Any
    ) -> None:
        torch.manual_seed(0)
        shapes = ShapesDataset(self.data_root, "train", size=64)
        module = SupervisedFineTuning(
            Policy(self.model, dtype="float32", lora=lora, prefix="duplicate"),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
            seed=0,
        )
        data = VideoDataModule(train=shapes, sampling=UniformSampling(2), batch_size=2)
        settings: dict[str, Any] = {"max_steps": 3, "logger": False, "enable_progress_bar": False}
        settings |= {"enable_model_summary": False, "accelerator": "cpu", "default_root_dir": str(self.folder / name)}
        Trainer(callbacks=list(callbacks), **{**settings, **trainer}).fit(module, data, ckpt_path=ckpt)

    def weights(self, name: str = "run") -> dict[str, torch.Tensor]:
        return load_file(next((self.folder / name / "export").glob("*.safetensors")))


@pytest.fixture
def fit(tiny_model: str, data_root: str, tmp_path: Path) -> Fit:
    return Fit(tiny_model, data_root, tmp_path)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("lora", [None, LORA])
def test_averaged_weights_are_exported_whatever_comes_first(fit: Fit, lora: Any) -> None:
    fit(ExportHuggingFace(), name="plain", lora=lora)
    fit(ExportHuggingFace(), EMAWeightAveraging(decay=0.5), name="first", lora=lora)
    fit(EMAWeightAveraging(decay=0.5), ExportHuggingFace(), name="last", lora=lora)
    assert equal(fit.weights("first"), fit.weights("last"))
    assert not equal(fit.weights("first"), fit.weights("plain"))


@pytest.mark.parametrize("averaged", [False, True])
def test_a_lost_export_is_written_by_going_on(fit: Fit, tmp_path: Path, averaged: bool) -> None:
    def callbacks() -> list[Any]:
        return [ExportHuggingFace(), *[EMAWeightAveraging(decay=0.5)][: int(averaged)], Checkpointing(3)]

    fit(*callbacks())
    before = fit.weights()
    shutil.rmtree(tmp_path / "run" / "export")
    fit(*callbacks(), ckpt="last")
    assert equal(before, fit.weights())


def test_a_fast_run_for_development_exports_nothing(fit: Fit, tmp_path: Path) -> None:
    fit(ExportHuggingFace(), fast_dev_run=True)
    assert not (tmp_path / "run" / "export").exists()


def test_a_run_that_is_broken_off_exports_nothing(fit: Fit, tmp_path: Path) -> None:
    class Broken(Checkpointing):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        fit(ExportHuggingFace(), Broken())
    assert not (tmp_path / "run" / "export").exists()


def test_the_last_checkpoint_is_there_before_the_export(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an export that fails can be repeated."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("orlaif.policy.export.copy_processor", full)
        with pytest.raises(OSError, match="No space"):
            fit(ExportHuggingFace(), Checkpointing(3))
    assert not (tmp_path / "run" / "export").exists()
    fit(ExportHuggingFace(), Checkpointing(3), ckpt="last")
    assert fit.weights()


def test_a_folder_that_cannot_be_replaced_is_refused_before_training(fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "run" / "export").mkdir(parents=True)
    (tmp_path / "run" / "export" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="it holds files that no export wrote"):
        fit(ExportHuggingFace())
    with pytest.raises(ValueError, match="it holds files that no export wrote"):
        fit(ExportHuggingFace(dirpath=fit.model), name="other")


def test_an_average_of_nothing_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"StochasticWeightAveraging.*use .*EMAWeightAveraging"):
        fit(StochasticWeightAveraging(swa_lrs=0.1), max_epochs=2)
