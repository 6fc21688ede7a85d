#!/usr/bin/env python3
"""Measure all that is owed from a GPU: ``python tools/gpu_day.py [--part kernels_correct] [--total 9]``.

Needs torch, triton, transformers, lightning, peft, tensorboard and pytest, and no installation of this project: the
parts are in ``benchmarks/gpu``. ``--help`` says the rest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATHS = [str(ROOT), str(ROOT / "kernels")]
sys.path[:0] = PATHS
os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHONUNBUFFERED", "1")

if __name__ == "__main__":
    from benchmarks.gpu.day import main

    if "--rehearse" in sys.argv:  # where there is no GPU, Triton's kernels run as Python; said before they are imported
        import torch

        if not torch.cuda.is_available():
            os.environ["TRITON_INTERPRET"] = "1"
    sys.exit(main())
