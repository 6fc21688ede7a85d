"""``orlaif export``: a folder from any checkpoint of a run, and a whole model from an adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from orlaif.cli.export import main
from orlaif.cli.recipe import run
from orlaif.policy.export import MARK
from tests.cli.test_cli import POLICY, small

LORA = '--model.init_args.policy.init_args.lora={"r": 4, "target_modules": ["q_proj"]}'
FEW = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.logger=false"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, data_root: str) -> Path:
    """Two steps of the warm start with LoRA, its export, and one merged."""
    run_dir = tmp_path_factory.mktemp("adapted")
    run(small("demo_sft.yaml", "fit", run_dir, tiny_model, data_root, *FEW, LORA))
    return run_dir


@pytest.mark.parametrize("name", ["", "checkpoints", "checkpoints/last", "itself"])
def test_a_checkpoint_becomes_what_its_run_exported(adapted: Path, tmp_path: Path, name: str) -> None:
    ckpt = next((adapted / "checkpoints").glob("*.ckpt")) if name == "itself" else adapted / name
    assert main(["--ckpt", str(ckpt), "--to", str(tmp_path / "out")]) == 0
    assert equal(tmp_path / "out", adapted / "export")
    about = [
        json.loads((folder / "adapter_config.json").read_text()) for folder in (tmp_path / "out", adapted / "export")
    ]
    assert about[0]["base_model_name_or_path"] == about[1]["base_model_name_or_path"]


def test_a_checkpoint_and_its_adapter_merge_to_one_model(adapted: Path, tmp_path: Path) -> None:
    main(["--ckpt", str(adapted), "--to", str(tmp_path / "one"), "--merge"])
    main(["--ckpt", str(adapted / "export"), "--to", str(tmp_path / "two"), "--merge"])
    assert json.loads((tmp_path / "two" / MARK).read_text())["kind"] == "model"
    assert equal(tmp_path / "one", tmp_path / "two")


def test_the_checkpoint_knows_its_recipe_whatever_lies_beside_it(adapted: Path, tmp_path: Path) -> None:
    """Another command has been in the folder since, or the checkpoint was moved away."""
    (saved,) = (adapted / "checkpoints").glob("*.ckpt")
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(saved, tmp_path / "checkpoints")
    for beside in (None, "{}", yaml.safe_dump({"model": {"class_path": "orlaif.evaluation.loop.Evaluation"}})):
        if beside is not None:
            (tmp_path / "config.yaml").write_text(beside)
        main(["--ckpt", str(tmp_path / "checkpoints"), "--to", str(tmp_path / "out")])
        assert equal(tmp_path / "out", adapted / "export")


def test_a_checkpoint_of_averaged_weights(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    average = ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
    run(small("demo_sft.yaml", "fit", tmp_path / "run", tiny_model, data_root, *FEW, LORA, *average))
    main(["--ckpt", str(tmp_path / "run"), "--to", str(tmp_path / "out")])
    assert equal(tmp_path / "out", tmp_path / "run" / "export")


def test_a_warm_start_is_an_adapter_and_so_is_what_comes_of_it(
    adapted: Path, tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    """RL from a supervised adapter, on the adapter itself and on one of another rank; tested, and merged."""
    larger = LORA.replace('"r": 4', '"r": 8')
    start = str(adapted / "export")
    for lora, rank in ((LORA, 4), (larger, 12)):
        words = [*FEW, lora, "--model.init_args.loss.kl_coef=0.02"]
        run(small("demo_rlaif.yaml", "fit", tmp_path / f"r{rank}", start, data_root, *words))
        export = tmp_path / f"r{rank}" / "export"
        about = json.loads((export / "adapter_config.json").read_text())
        assert (about["r"], about["base_model_name_or_path"]) == (rank, str(Path(tiny_model).absolute()))
        main(["--ckpt", str(export), "--to", str(tmp_path / f"merged{rank}"), "--merge"])
        again = tmp_path / f"again{rank}"
        main(["--ckpt", str(tmp_path / f"r{rank}"), "--to", str(again)])
        assert equal(again, export)
        limited = ["--trainer.limit_test_batches=1", "--trainer.logger=false"]
        run(small("demo_rlaif.yaml", "test", tmp_path / f"test{rank}", str(export), data_root, *limited))
        assert (tmp_path / f"test{rank}" / "results.json").exists()


def test_all_of_a_policy(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    """Full fine-tuning with a frozen copy as reference, which is no part of the export."""
    run(
        small(
            "demo_rlaif.yaml", "fit", tmp_path / "run", tiny_model, data_root, *FEW, "--trainer.limit_train_batches=2"
        )
    )
    main(["--ckpt", str(tmp_path / "run"), "--to", str(tmp_path / "out")])
    assert equal(tmp_path / "out", tmp_path / "run" / "export")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--ckpt": "/no/such/run"}, r"--ckpt is '/no/such/run': no checkpoint there"),
        ({"--ckpt": "MODEL"}, "which is a whole model already"),
        ({"--ckpt": "EXPORT"}, "which is an exported adapter already; --merge"),
        ({"--to": "RUN"}, "it holds files that no export wrote"),
        ({"--model.init_args.policy.init_args.path": "/no/base"}, "no such folder"),
        (
            {"--model.init_args.policy.init_args.lora": '{"r": 4, "target_modules": ["q_proj", "k_proj"]}'},
            r"does not belong to this recipe: it lacks policy.model.*k_proj",
        ),
    ],
)
def test_mistakes_are_named(adapted: Path, tiny_model: str, tmp_path: Path, change: Any, message: str) -> None:
    words = {"--ckpt": str(adapted), "--to": str(tmp_path / "out")} | change
    places = {"MODEL": tiny_model, "EXPORT": str(adapted / "export"), "RUN": str(adapted)}
    with pytest.raises(ValueError, match=message):
        main([f"{name}={places.get(value, value)}" for name, value in words.items()])
    assert not (tmp_path / "out").exists()


def test_a_folder_of_several_runs_names_none(adapted: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(adapted, tmp_path / "runs" / name)
    with pytest.raises(ValueError, match=r"holds the checkpoints of several runs; name one of .*/one, .*/runs/two"):
        main(["--ckpt", str(tmp_path / "runs"), "--to", str(tmp_path / "out")])
    main(["--ckpt", str(tmp_path / "runs" / "two"), "--to", str(tmp_path / "out")])
    assert equal(tmp_path / "out", adapted / "export")


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {}")
    with pytest.raises(ValueError, match=r"checkpoint .*recipe.yaml cannot be read"):
        main(["--ckpt", str(tmp_path / "recipe.yaml"), "--to", str(tmp_path / "out")])


def test_a_moved_base_is_named(adapted: Path, tiny_model: str, tmp_path: Path) -> None:
    """By an override; another model in its place is not taken for it."""
    shutil.copytree(tiny_model, tmp_path / "base")
    main(["--ckpt", str(adapted), "--to", str(tmp_path / "out"), f"{POLICY}={tmp_path / 'base'}"])
    about = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(tmp_path / "base")
    from orlaif.demo.shapes import words
    from orlaif.demo.tiny import make_tiny_model

    make_tiny_model(str(tmp_path / "other"), words(), hidden_size=32, num_layers=2, seed=1)
    with pytest.raises(ValueError, match="whose weights are not those that the run of checkpoint"):
        main(["--ckpt", str(adapted), "--to", str(tmp_path / "out"), f"{POLICY}={tmp_path / 'other'}"])
