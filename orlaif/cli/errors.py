"""An exception as the one line that a user can act on: what is wrong, where, and what would be right.

Mistakes of the recipe's grammar come as a :class:`~orlaif.cli.words.RecipeError` that already is one line; here are
those of the machine (disk, GPU, network), of files (checkpoints, models) and of the user's own code, which alone keeps
its traceback. Nothing heavy is imported: errors of libraries are known by their names.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from orlaif.cli.names import did_you_mean

#: The extra of orlaif that brings a module.
EXTRAS = {
    "datasets": "data",
    "fsspec": "data",
    "pyarrow": "data",
    "openai": "judge",
    "diskcache": "judge",
    "matplotlib": "eval",
    "bitsandbytes": "qlora",
    "vllm": "vllm",
}
#: Exceptions whose own words are for the user.
_FOR_USERS = ("ValueError", "VideoError", "OracleError", "MisconfigurationException", "ArgumentError")
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class UsageError(ValueError):
    """The words of the command line are not understood; the exit status is 2, as argparse has it."""


@dataclass(frozen=True, kw_only=True)
class Explained:
    """An error for a user.

    Args:
        line: one line.
        status: the exit status.
        is_bug: whether the traceback is needed to act on it.
    """

    line: str
    status: int = 1
    is_bug: bool = False


def explained(error: BaseException) -> Explained:
    """What to say of an error that ended a subcommand."""
    if isinstance(error, UsageError):
        return Explained(line=one_line(str(error)), status=2)
    if (oracle := _bug_of_an_oracle(error)) is not None:
        return Explained(line=oracle, is_bug=True)
    for rule in _RULES:
        for one in _chain(error):
            if (line := rule(one)) is not None:
                return Explained(line=one_line(line))
    if any(base.__name__ in _FOR_USERS for base in type(error).__mro__):
        return Explained(line=one_line(str(error)))
    frame = _telling_frame(error)
    at = f" ({frame.filename}:{frame.lineno})" if frame is not None else ""
    return Explained(line=f"{type(error).__name__}: {one_line(str(error))}{at}", is_bug=True)


def one_line(text: str, limit: int = 700) -> str:
    """Lines joined, the middle of what is too long left out."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    joined = ""
    for line in filter(None, lines):
        joined += ("" if not joined else " " if joined[-1] in ".:;,?!" else "; ") + line
    return joined if len(joined) <= limit else f"{joined[: limit - 200]} ... {joined[-195:]}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it came from."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        hidden = None if following.__suppress_context__ else following.__context__
        following = following.__cause__ or hidden


# ------------------------------------------------------------------------------------------------------ the machine


def _full_disk(error: BaseException) -> str | None:
    numbers = (errno.ENOSPC, errno.EDQUOT)
    full = (isinstance(error, OSError) and error.errno in numbers) or "No space left on device" in str(error)
    if not full and not re.search(r"PytorchStreamWriter failed|unexpected pos \d+ vs", str(error)):
        return None
    if (path := getattr(error, "filename", None)) is None:
        path = next((p for p in _paths_in_frames(error)), None)
    where = f" while {path} was written" if path else ""
    return f"the disk is full{where}: {str(error).splitlines()[0]}; make room, or write elsewhere with --run_dir"


def _paths_in_frames(error: BaseException) -> Iterator[str]:
    """Files that the functions an error came through were given, innermost first."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for name in ("path", "filepath", "filename", "file", "f", "to", "folder", "save_directory"):
            value = frame.f_locals.get(name)
            if isinstance(value, str | os.PathLike) and os.sep in os.fspath(value):
                yield os.fspath(value)


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
    frame = _telling_frame(error)
    at = f" (imported by {frame.filename}:{frame.lineno})" if frame is not None else ""
    return f"{error}{at}"


# ------------------------------------------------------------------------------------------------ files and the hub


def _hub(error: BaseException) -> str | None:
    said, kind = str(error), type(error).__name__
    model = re.search(r"(?:huggingface\.co/|cached files|repo(?:sitory)? for url: \S+?co/)([\w.-]+/[\w.-]+)", said)
    name = f"{model[1]}: " if model and model[1] not in ("docs/transformers", "settings/tokens") else ""
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


def _broken_file(error: BaseException) -> str | None:
    said, kind = str(error), type(error).__name__
    broken = kind in ("UnpicklingError", "BadZipFile", "SafetensorError", "EOFError") or re.search(
        r"PytorchStreamReader failed|failed finding central directory|Invalid magic number|not a ZIP archive"
        r"|Error while deserializing header|invalid header",
        said,
    )
    if not broken:
        return None
    path = next((p for one in _chain(error) for p in _paths_in_frames(one)), None)
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
        path = next(_paths_in_frames(error), None)
        return f"{path + ': ' if path else ''}not UTF-8 text: {error.reason} at byte {error.start}"
    transformers = any(
        "transformers" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    if isinstance(error, OSError) and transformers:
        return str(error)
    return None


_RULES: tuple[Callable[[BaseException], str | None], ...] = (
    _full_disk,
    _no_gpu,
    _trainer,
    _out_of_memory,
    _missing_module,
    _hub,
    _broken_file,
    _other_weights,
    _file,
)


# -------------------------------------------------------------------------------------------------- the user's code


def _bug_of_an_oracle(error: BaseException) -> str | None:
    """``MyOracle failed on prompt q3: IndexError: ... (my_oracle.py:12)``, or None where no oracle's code failed."""
    if type(error).__name__ in ("OracleError", "VideoError"):
        return None
    frames = list(traceback.walk_tb(error.__traceback__))
    asked = [i for i, (frame, _) in enumerate(frames) if _is_oracle(frame.f_locals.get("self"))]
    if not asked or (isinstance(error, ValueError) and _is_ours(frames[-1][0].f_code.co_filename)):
        return None
    frame = _telling_frame(error)
    if frame is None or (_is_ours(frame.filename) and any(rule(error) for rule in _RULES)):
        return None
    oracle = type(frames[asked[-1]][0].f_locals["self"]).__name__
    groups = [value for one, _ in frames for value in one.f_locals.values() if _is_group(value)]
    if groups:
        prompt = f"prompt {groups[-1].prompt.id}"
    else:
        given = next((one.f_locals["groups"] for one, _ in frames if "groups" in one.f_locals), ())
        ids = [group.prompt.id for group in given if _is_group(group)]
        prompt = f"prompts {', '.join(ids[:5])}{' ...' if len(ids) > 5 else ''}"
    where = f"{frame.filename}:{frame.lineno}"
    return f"oracle {oracle} failed on {prompt}: {type(error).__name__}: {one_line(str(error))} ({where})"


def _is_oracle(value: object) -> bool:
    return any((kind.__module__, kind.__name__) == ("orlaif.oracles.base", "Oracle") for kind in type(value).__mro__)


def _is_group(value: object) -> bool:
    return type(value).__name__ == "CandidateGroup"


def _is_ours(filename: str) -> bool:
    return os.path.abspath(filename).startswith(_PACKAGE + os.sep)


def _telling_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Where an error was raised, as near to the user's own code as it was."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (f"{os.sep}site-packages{os.sep}", f"{os.sep}lib{os.sep}python", "<frozen")
    users = [f for f in frames if not _is_ours(f.filename) and not any(part in f.filename for part in libraries)]
    return users[-1] if users else frames[-1] if frames else None
