"""What errors of the machine and of files mean to a user: each rule is an exception to a sentence, or None.

Nothing heavy is imported: errors of libraries are known by their names and words.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Callable

from orlaif.cli.frames import chain, model_in_frames, paths_in_frames, telling_frame
from orlaif.near_misses import did_you_mean

#: The extra of orlaif that brings a module.
EXTRAS = {
    "datasets": "data",
    "fsspec": "data",
    "pyarrow": "data",
    "openai": "judge",
    "matplotlib": "eval",
    "bitsandbytes": "qlora",
    "vllm": "vllm",
}


# ------------------------------------------------------------------------------------------------------ the machine


def _full_disk(error: BaseException) -> str | None:
    numbers = (errno.ENOSPC, errno.EDQUOT)
    full = (isinstance(error, OSError) and error.errno in numbers) or "No space left on device" in str(error)
    if not full and not re.search(r"PytorchStreamWriter failed|unexpected pos \d+ vs", str(error)):
        return None
    if (path := getattr(error, "filename", None)) is None:
        path = next((p for p in paths_in_frames(error)), None)
    where = f" while {path} was written" if path else ""
    return f"the disk is full{where}: {str(error).splitlines()[0]}; make room, or write elsewhere"


def _no_gpu(error: BaseException) -> str | None:
    said = str(error)
    if re.search(r"No supported gpu backend|CUDAAccelerator.* (can not|cannot) run|MPSAccelerator.* can", said):
        return (
            "trainer.accelerator asks for a GPU, and PyTorch sees none on this machine "
            "(torch.cuda.is_available() is False); --trainer.accelerator cpu runs without one"
        )
    if re.search(r"Torch not compiled with CUDA|No CUDA GPUs are available|NVIDIA driver", said):
        return f"a GPU is needed, and PyTorch sees none on this machine: {said.splitlines()[0]}"
    return None


def _trainer(error: BaseException) -> str | None:
    """Names that Lightning's Trainer does not know."""
    said = str(error)
    if (match := re.search(r"invalid (accelerator|strategy) name: `\w+='([^']*)'`", said)) is not None:
        names = {"accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"), "strategy": ("auto", "ddp", "fsdp2")}
        return f"trainer.{match[1]} is {match[2]!r}{did_you_mean(match[2], names[match[1]])}"
    if (match := re.search(r"`Trainer\((\w+)=(.*?)\)` (.*)", said)) is not None:
        return f"trainer.{match[1]} is {match[2]}: {match[3]}"
    return None


def _out_of_memory(error: BaseException) -> str | None:
    if type(error).__name__ != "OutOfMemoryError" and "CUDA out of memory" not in str(error):
        return None
    first = str(error).split(". ")[0]
    return f"{first}; orlaif plan --config <recipe> says what would make it fit (fewer frames, microbatch, LoRA, fsdp2)"


def _missing_module(error: BaseException) -> str | None:
    if not isinstance(error, ImportError):
        return None
    name = (error.name or "").partition(".")[0]
    for module, extra in EXTRAS.items():
        if name == module or re.search(rf"\b{module}\b", str(error), re.IGNORECASE):
            return f"{module} is needed and not installed; in orlaif's checkout: pip install '.[{extra}]'"
    frame = telling_frame(error)
    at = f" (imported by {frame.filename}:{frame.lineno})" if frame is not None else ""
    return f"{error}{at}"


# ------------------------------------------------------------------------------------------------ files and the hub


def _hub(error: BaseException) -> str | None:
    said, kind = str(error), type(error).__name__
    model = model_in_frames(error)
    name = f"{model}: " if model is not None else ""
    if kind in ("GatedRepoError",):
        return f"{name}the model is gated; accept its terms on huggingface.co and run `hf auth login`"
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        return f"{name}no such model on huggingface.co, or it is private; a path of a folder must exist on this machine"
    offline = (
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
        "ConnectError",
        "ConnectTimeout",
        "NameResolutionError",
    )
    if kind in offline or "couldn't connect to 'https://huggingface.co'" in said or "LocalEntryNotFound" in said:
        return (
            f"{name}huggingface.co cannot be reached and the model is not in the cache "
            "(HF_HOME); download it where there is a network (`hf download <id>`), and name the folder instead"
        )
    return None


def _no_processor(error: BaseException) -> str | None:
    match = re.search(r"Can't (?:load|instantiate) .*(?:processor|tokenizer).* for '([^']+)'", str(error))
    if match is None:
        return None
    return (
        f"{match[1]} holds no processor (processor_config.json or preprocessor_config.json, tokenizer.json, ...); "
        "copy those files from the base model's folder, or name a video-language model"
    )


def _broken_file(error: BaseException) -> str | None:
    said, kind = str(error), type(error).__name__
    if kind == "JSONDecodeError":
        path = next(paths_in_frames(error), None)
        return f"{path}: no valid JSON: {said}" if path is not None else None
    if isinstance(error, KeyError) and said == "'pytorch-lightning_version'":
        return "--ckpt_path names a file that is no checkpoint of a run (it holds no training state)"
    broken = kind in ("UnpicklingError", "BadZipFile", "SafetensorError", "EOFError") or re.search(
        r"PytorchStreamReader failed|failed finding central directory|Invalid magic number|not a ZIP archive"
        r"|Error while deserializing header|invalid header",
        said,
    )
    if not broken:
        return None
    path = next((p for one in chain(error) for p in paths_in_frames(one)), None)
    what = path if path is not None else "a checkpoint"
    return (
        f"{what} cannot be read: it is cut off or no checkpoint ({kind}: {said.splitlines()[0] if said else 'empty'})"
    )


def _other_weights(error: BaseException) -> str | None:
    if "Error(s) in loading state_dict" not in str(error):
        return None
    return f"the checkpoint is of another model or adapter than the recipe's: {str(error)[:400]}"


def _file(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fspath(error.filename)}: {error.strerror.lower()}"
    if isinstance(error, UnicodeDecodeError):
        path = next(paths_in_frames(error), None)
        return f"{path + ': ' if path else ''}not UTF-8 text: {error.reason} at byte {error.start}"
    transformers = any(
        "transformers" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    if isinstance(error, OSError) and transformers:
        return str(error)
    return None


RULES: tuple[Callable[[BaseException], str | None], ...] = (
    _full_disk,
    _no_gpu,
    _trainer,
    _out_of_memory,
    _missing_module,
    _hub,
    _no_processor,
    _broken_file,
    _other_weights,
    _file,
)
