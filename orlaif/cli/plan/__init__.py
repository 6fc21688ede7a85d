"""``orlaif plan --config recipe.yaml --gpus 4 --gpu-memory 80GB``: will it fit, and what would make it fit."""

from orlaif.cli.plan.command import main

__all__ = ["main"]
