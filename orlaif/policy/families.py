"""Where model families differ, asked of the model and its processor themselves.

No list of names says what is allowed: :class:`Family` asks, and the check at load (``orlaif.policy.probe``) compares
what came out with the model left to itself. What cannot be asked is overridden by model type (:func:`overrides`), and a
recipe may name a class of its own (``policy.family: {class_path: ...}``).

Shapes: P prompts of S tokens, G completions of T tokens.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.video_utils import VideoMetadata

from orlaif.policy.asking import (
    base_of,
    counted_positions,
    decoder_positions,
    process,
    same_places,
    sorted_out,
    speaking,
)
from orlaif.policy.joining import Joining, collated, joining_of, joining_of_images
from orlaif.policy.positions import behind_the_largest, completion_positions, in_order
from orlaif.policy.whole import load_part, with_attention
from orlaif.types import Picture, PromptBatch, Seen, VideoClip

#: Of a config: tokens in whose place features are put.
_PLACEHOLDER = re.compile(r"(image|video|audio|img_context|media|sound_context|video_context)_token_(id|index)")
#: Path of clips that are made up, to ask a model.
SYNTHETIC = "probe"
#: Methods of models that count positions.
_WAYS = ("get_rope_index", "compute_3d_position_ids")
#: Overrides by model type (:func:`overrides`).
_OVERRIDES: dict[str, type[Family]] = {}


def overrides(*model_types: str) -> Callable[[type[Family]], type[Family]]:
    """Let a class stand for these model types of transformers."""

    def register(kind: type[Family]) -> type[Family]:
        _OVERRIDES.update(dict.fromkeys(model_types, kind))
        return kind

    return register


def family_of(config: Any) -> Family:
    """A new object for the model type of a transformers ``config``: generic, where nothing overrides it."""
    return _OVERRIDES.get(config.model_type, Family)()


class Family:
    """Generic behaviour. Objects are made for one loaded model, and remember what they have asked it."""

    #: Whether clips of unequal lengths may need separate passes (:meth:`collate`).
    may_split = True
    #: Frames of a synthetic clip that the model takes, as the check at load saw.
    probe_frames = 4

    def __init__(self) -> None:
        #: Whether positions are those that the model hands to its decoder, for which its tower has to run.
        self.asks_decoder = False
        self._way = _WAYS[0]
        #: How the processor lays videos; None before it was asked (:meth:`learn`).
        self.joining: Joining | None = None
        self._knows_images = False

    # ------------------------------------------------------------------ loading

    def load(self, path: str, **options: Any) -> Any:
        """The model with its LM head, in eval mode.

        Args:
            path: folder or hub id.
            options: of ``from_pretrained``.

        Raises:
            ValueError: a model type that transformers has no such class for.
        """
        config = AutoConfig.from_pretrained(path, revision=options.get("revision"))
        part = speaking(config)
        if part is None:
            raise ValueError(
                f"{path!r} holds a model of type {config.model_type!r}, which takes no video: transformers knows none "
                "of that type that sees and speaks (AutoModelForImageTextToText); name a video-language model"
            )
        if part is config:
            return with_attention(AutoModelForImageTextToText.from_pretrained, path, **options)
        return load_part(path, part, **options)

    def build(self, config: Any, **options: Any) -> Any:
        """The model of a ``config`` without weights from anywhere, as ``orlaif plan`` measures it.

        Args:
            config: of transformers.
            options: of ``from_config``.
        """
        return AutoModelForImageTextToText.from_config(speaking(config) or config, **options)

    # ----------------------------------------------------------------- encoding

    def encode(self, processor: Any, prompt: str, clip: Seen, metadata: VideoMetadata) -> dict[str, Any]:
        """One prompt by the processor, in a separate call.

        Args:
            processor: of transformers.
            prompt: as the chat template renders it, with one video.
            clip: its clip; the processor gets a copy of the frames, since some draw into them.
            metadata: of the clip, for the processor.

        Returns:
            ``input_ids`` i64[1, S], ``attention_mask`` i64[1, S], and whatever else the processor returns for the
            model.
        """
        return process(processor, [prompt], [[clip.frames.clone()]], [metadata])

    def encode_media(
        self, processor: Any, prompt: str, items: Sequence[Picture | VideoClip], metadata: Sequence[VideoMetadata]
    ) -> dict[str, Any]:
        """As :meth:`encode`, for a prompt that shows something else than one video.

        Args:
            processor: of transformers.
            prompt: as the chat template renders it.
            items: pictures and clips in the order of the prompt; none for text.
            metadata: of the clips.

        Returns:
            As :meth:`encode`.
        """
        return process(processor, [prompt], *sorted_out(items, metadata))

    def learn(self, processor: Any, prompt: str, image: str | None = None) -> None:
        """Ask the processor, once, how it lays the videos, and the images, of two prompts one behind the other.

        Args:
            processor: of transformers.
            prompt: as the chat template renders it; its video is replaced by a small synthetic one.
            image: the same with an image, where images are to be laid.
        """
        if self.joining is None:
            self.joining = joining_of(processor, prompt)
        if image is not None and not self._knows_images:
            self._knows_images = True
            self.joining = self.joining.beside(joining_of_images(processor, image))

    def collate(self, encoded: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
        """P encoded prompts as one batch.

        What has a value for each token is padded on the left. All else lies one behind the other where shapes allow it;
        where they do not, or where some prompts show images or videos and others do not, each prompt keeps its
        tensors, in lists with None for one that has none, and passes through the model go by prompts that agree
        (``orlaif.policy.encoding.sub_batches``).

        Args:
            encoded: P results of :meth:`encode`.
            pad_id: fills ``input_ids``.

        Returns:
            ``input_ids`` i64[P, S], ``attention_mask`` i64[P, S], and the rest, tensors or lists of P tensors.
        """
        return collated(encoded, pad_id, (self.joining or Joining()).shape_beside, self.joined)

    def joined(self, values: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
        """The inputs of several prompts, a tensor for each, as one tensor for all.

        Args:
            values: by name; those of a name have the same shape beside the dimension along which they are joined.
        """
        return (self.joining or Joining()).joined_all(values)

    def inputs(self, model: Any, batch: PromptBatch) -> dict[str, Any]:
        """Those of ``batch.mm_inputs`` that the model's ``forward`` takes."""
        base = base_of(model)
        taken: set[str] = set()
        for module in (base, getattr(base, "model", base)):  # the outer one hands on what the inner one takes
            taken |= set(inspect.signature(module.forward).parameters)
        return {name: value for name, value in batch.mm_inputs.items() if name in taken}

    # ---------------------------------------------------------------- positions

    def settle(self, model: Any, batch: PromptBatch) -> None:
        """Find out, by one prompt, whether the model's numbering can be had without running it.

        Args:
            model: of transformers.
            batch: P prompts.
        """
        handed = decoder_positions(model, self._given(model, batch))
        if handed is None:
            return
        for way in _WAYS:
            counted = counted_positions(model, way, self._known(model, batch))
            if counted is not None and same_places(handed, counted, batch):
                self._way = way
                return
        self.asks_decoder = not same_places(handed, in_order(batch), batch)

    def prompt_positions(self, model: Any, batch: PromptBatch) -> Tensor:
        """Position ids of the prompts: those that the model hands to its decoder.

        Args:
            model: of transformers, or PEFT's around one.
            batch: P prompts.

        Returns:
            i64[P, S], or i64[3, P, S] for multimodal RoPE.
        """
        positions = None
        if self.asks_decoder:
            positions = decoder_positions(model, self._given(model, batch))
        return self.corrected(model, batch, self.counted(model, batch) if positions is None else positions)

    def corrected(self, model: Any, batch: PromptBatch, positions: Tensor) -> Tensor:
        """``positions`` as the original implementation of the model numbers them, where transformers does not."""
        return positions

    def counted(self, model: Any, batch: PromptBatch) -> Tensor:
        """Position ids by the model's own count, else one for each token; neither runs the model."""
        counted = counted_positions(model, self._way, self._known(model, batch))
        return in_order(batch) if counted is None else counted

    def _given(self, model: Any, batch: PromptBatch) -> dict[str, Any]:
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **self.inputs(model, batch)}

    def _known(self, model: Any, batch: PromptBatch) -> dict[str, Any]:
        return {**batch.mm_inputs, **self._given(model, batch)}

    def completion_positions(self, positions: Tensor, length: int) -> Tensor:
        """Positions of a completion of ``length`` tokens behind prompts at ``positions``: i64[P, T] or i64[3, P, T]."""
        return completion_positions(positions, length)

    # ------------------------------------------------------------------- parts

    def head(self, model: Any) -> nn.Module:
        """The LM head.

        Raises:
            ValueError: the model has none.
        """
        base = base_of(model)
        head = base.get_output_embeddings()
        if head is None:
            named = [module for name, module in base.named_modules() if name.rpartition(".")[2].endswith("lm_head")]
            if not named:
                raise ValueError(f"model type {base.config.model_type!r} has no LM head that could be named")
            head = named[0]
        return head

    def tower(self, model: Any) -> list[nn.Module]:
        """What turns a video into features: the largest modules that hold nothing of decoder and LM head."""
        base = base_of(model)
        kept = {id(module) for part in (base.get_decoder(), self.head(model)) for module in part.modules()}

        def outside(module: nn.Module) -> list[nn.Module]:
            if id(module) in kept:
                return []
            if not any(id(inner) in kept for inner in module.modules()):
                return [module]
            return [part for child in module.children() for part in outside(child)]

        return [part for part in outside(base) if any(True for _ in part.parameters())]

    def tower_parameters(self, model: Any) -> list[nn.Parameter]:
        """The parameters of :meth:`tower`, and those that lie beside its modules: all outside decoder and LM head."""
        base = base_of(model)
        kept = {id(p) for part in (base.get_decoder(), self.head(model)) for p in part.parameters()}
        return [parameter for parameter in base.parameters() if id(parameter) not in kept]

    def placeholder_ids(self, config: Any) -> list[int]:
        """Tokens in whose place features of images, videos and sound are put; never sampled, never counted."""
        known = {*vars(config), *getattr(config, "attribute_map", {})}  # some go by another name
        names = [name for name in known if _PLACEHOLDER.fullmatch(name)]
        ids = [getattr(config, name) for name in names]
        return sorted({int(i) for i in ids if isinstance(i, int) and i >= 0})


@overrides("qwen2_vl", "qwen2_5_vl")
class TextBehindTheVideo(Family):
    """Qwen2-VL and Qwen2.5-VL: text behind a video starts behind the largest of its coordinates.

    So the original implementation, transformers up to 5.3, vLLM, and ``generate`` behind the first token number it.
    transformers from 5.4 goes on behind height and width alone, so that a question after a long video lies inside it.
    """

    def corrected(self, model: Any, batch: PromptBatch, positions: Tensor) -> Tensor:
        """Positions i64[3, P, S] in which text behind a video goes on from the video's largest coordinate."""
        vision = torch.isin(batch.input_ids, torch.tensor(self.placeholder_ids(base_of(model).config)).to(positions))
        return behind_the_largest(positions, vision, batch.attention_mask.bool())
