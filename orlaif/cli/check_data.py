"""``orlaif check-data --config recipe.yaml``: everything that can be wrong with a recipe's data, before a run meets it.

Every row of every data file is read, and all that is broken is listed by file, line and field: also what the model does
not take for text, answers that are none of their options, and what the oracle, or the stage, needs and a row has not.
Then the videos of a sample of rows are decoded as the run would, and their prompts measured against the context of the
model. Exits with 1 where anything is wrong.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orlaif.arguments import HelperParser
from orlaif.cli.recipe import read_recipe
from orlaif.data.datamodule import VideoDataModule
from orlaif.data.seen import about_video, decode_seen
from orlaif.data.video import beyond_the_end, require_ffmpeg
from orlaif.evaluation.choices import choice
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.ending import answer_ids
from orlaif.stages import told
from orlaif.training.preference_sampling import PreferenceSampling
from orlaif.training.ranker import PreferenceRankerTraining
from orlaif.training.rlaif import OracleRLAIF
from orlaif.training.supervised import SupervisedFineTuning
from orlaif.types import BringsEncoder, Image, PreferencePrompt, Prompt, Video, VideoClip, VideoError


class _Model:
    """What the recipe's model has to say of prompts, without its weights.

    Args:
        module: of the recipe.
        data: of the recipe; its processor and system prompt count.

    Attributes:
        encoder: of prompts; None where the processor is not there, and ``why_not`` says why.
    """

    def __init__(self, module: Any, data: VideoDataModule) -> None:
        self.module = module
        self.encoder: Any = data.encoder
        self.why_not = ""
        self._alone = threading.Lock()  # processors promise nothing to threads
        if self.encoder is None and isinstance(module, BringsEncoder):
            try:
                made = module.prompt_encoder(data.processor, data.system_prompt)
                # Lengths are measured below, by what each stage puts behind a prompt.
                self.encoder = made.without_limit() if isinstance(made, ProcessorEncoder) else made
            except (OSError, ValueError, RuntimeError, ImportError) as error:  # such as a warm start still to be made
                self.why_not = str(error).strip().split("\n")[0]

    @property
    def special_texts(self) -> frozenset[str]:
        """Texts that no row may spell."""
        return getattr(self.encoder, "special_texts", frozenset())

    def lacks(self, name: str, prompt: Prompt) -> str | None:
        """What the stage that reads the data set ``name`` needs, and a prompt has not."""
        module = self.module
        if isinstance(module, SupervisedFineTuning) and name == "train" and prompt.answer is None:
            return "field 'answer' is missing; supervised fine-tuning needs one for every prompt"
        if (
            isinstance(module, PreferenceRankerTraining)
            and name == "train"
            and not isinstance(prompt, PreferencePrompt)
        ):
            return "there are no ranked answers; a ranker is trained on those (orlaif.data.preferences)"
        asked = "predict" if isinstance(module, PreferenceSampling) else "train"
        if isinstance(module, OracleRLAIF) and name == asked and (lack := module.oracle.lacks(prompt)) is not None:
            return f"{lack}, which {type(module.oracle).__name__} needs"
        return None

    def check_length(self, name: str, prompt: Prompt, clip: Any) -> None:
        """Encode a prompt as the run would.

        Raises:
            VideoError: the model's processor does not take the clip.
            ValueError: the prompt, and what comes behind it, is longer than the model's context or an engine's.
        """
        policy = getattr(self.module, "policy", None)
        if self.encoder is None:
            return
        with self._alone:
            batch = self.encoder([prompt], [clip])
            if policy is not None:
                policy.check_context(batch, self._behind(name, prompt))
            if name == "train" and isinstance(self.module, OracleRLAIF):
                self.module.rollout.check_room(batch)

    def _behind(self, name: str, prompt: Prompt) -> int:
        """Most tokens that the stage ``name`` puts behind a prompt: its answer, or the longest completion."""
        module = self.module
        if name != "train":
            return int(module.greedy.max_new_tokens)
        if isinstance(module, SupervisedFineTuning):
            return len(answer_ids(module.policy, prompt.answer or ""))
        return int(module.rollout.sampling.max_new_tokens) if isinstance(module, OracleRLAIF) else 1


def _about(prompts: Sequence[Prompt]) -> str:
    """How many videos, and how many images, if any, prompts show."""
    shown = {part for prompt in prompts for part in prompt.media}
    videos = len({part.path for part in shown if isinstance(part, Video)})
    images = len({part.path for part in shown if isinstance(part, Image)})
    return f"{videos} videos" + (f" and {images} images" if images else "")


def _odd_answer(prompt: Prompt) -> str | None:
    if prompt.options and (twice := [option for option, n in Counter(prompt.options).items() if n > 1]):
        return f"field 'options' has {twice[0]!r} twice, so that no answer can name one of the two"
    if not prompt.options or prompt.answer is None or prompt.answer in prompt.options:
        return None
    if choice(prompt.answer, prompt.options) is not None:
        return None
    return f"field 'answer' is {prompt.answer!r}, which names none of its 'options' {list(prompt.options)}"


def check_data(data: VideoDataModule, module: Any, sample: int | None, seed: int = 0) -> tuple[list[str], list[str]]:
    """Read and try the data of a recipe.

    Args:
        data: the recipe's DataModule.
        module: the recipe's LightningModule.
        sample: videos of each data set to decode, drawn by ``seed``; None decodes all.
        seed: of the draw.

    Returns:
        A line of counts per data set, and a line for everything that is wrong.
    """
    require_ffmpeg()
    report: list[str] = []
    wrong: list[str] = []
    model = _Model(module, data)
    if model.encoder is None:
        report.append(f"placeholder texts and lengths are not checked: {model.why_not or 'no processor'}")
    seen: set[int] = set()
    for name, dataset in data.datasets.items():
        if dataset is None or id(dataset) in seen:
            continue
        seen.add(id(dataset))
        dataset.forbid(model.special_texts)
        dataset.prepare()
        broken = dataset.problems()
        prompts = dataset.readable()
        odd = [
            f"{dataset.where(prompt)}: {problem}"
            for prompt in prompts
            for problem in (model.lacks(name, prompt), _odd_answer(prompt))
            if problem is not None
        ]
        tried = prompts if sample is None or sample >= len(prompts) else random.Random(seed).sample(prompts, sample)
        with ThreadPoolExecutor(data.decode_threads) as pool:
            found = pool.map(lambda prompt, name=name: _tried(name, prompt, data, model), tried)
            outcomes = [one for _, one in zip(told(tried, f"decoding {name}", "prompts"), found, strict=True)]
        bad = [str(error) for error in outcomes if isinstance(error, VideoError)]
        long = [
            f"{dataset.where(prompt)}: {error}"
            for prompt, error in zip(tried, outcomes, strict=True)
            if isinstance(error, ValueError)
        ]
        wrong += [*broken, *odd, *bad, *long]
        answers = sum(prompt.answer is not None for prompt in prompts)
        report.append(
            f"{name}: {len(prompts)} questions about {_about(prompts)}, {answers} with an answer; {len(broken)} broken "
            f"rows; {len(tried)} clips decoded, {len(bad)} bad"
        )
    return report, wrong


def _tried(name: str, prompt: Prompt, data: VideoDataModule, model: _Model) -> VideoError | ValueError | None:
    try:
        seen = decode_seen(prompt, data.sampling, data.decode_device, data.budget)
        model.check_length(name, prompt, seen)
    except VideoError as error:
        return VideoError(f"{prompt.id}: {error.path}", error.cause)
    except ValueError as error:
        return error
    clips = [item for item in seen.items if isinstance(item, VideoClip)]
    videos = [part for part in prompt.media if isinstance(part, Video)]
    for video, clip in zip(videos, clips, strict=True):
        if (beyond := beyond_the_end(about_video(prompt, video), clip.duration_s)) is not None:
            return ValueError(f"{video.path}: {beyond}")
    return None


def main(arguments: Sequence[str]) -> int:
    """The subcommand; returns the exit status."""
    parser = HelperParser(
        prog="orlaif check-data",
        description="Read all data of a recipe, decode a sample of its videos, and list what is wrong. Further "
        "arguments are those of the recipe, such as --data.init_args.train.init_args.path.",
    )
    parser.add_argument("--sample", default="100", help="videos of each data set to decode: a number, or 'all'")
    known, rest = parser.parse_known_args(arguments)
    if known.sample != "all" and not known.sample.isdigit():
        raise ValueError(f"--sample is {known.sample!r}; it must be a number, or 'all'")
    recipe = read_recipe(rest)
    data = recipe.datamodule
    if not isinstance(data, VideoDataModule):
        raise ValueError(f"data is a {type(data).__name__}; check-data knows orlaif.VideoDataModule")
    report, wrong = check_data(data, recipe.model, None if known.sample == "all" else int(known.sample))
    for line in [*report, *wrong]:
        print(line)
    print(f"{len(wrong)} problems" if wrong else "no problems")
    return int(bool(wrong))
