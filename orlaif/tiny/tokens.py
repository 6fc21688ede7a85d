"""A word-level tokenizer with the special tokens that a family's processor looks for, and a chat template."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
#: What Qwen's processors look for, by the attribute of the tokenizer.
QWEN_TOKENS = {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
#: Words that a tiny model knows by default.
WORDS = (
    *("what", "color", "is", "it", "does", "that", "mean", "the", "token", "says", "a", "of", "in", "clip", "animal"),
    *("frames", "red", "blue", "green", "yellow", "this"),
)
#: Words that processors write around a video.
WRITTEN = ("second", "Time", "Frame", "s", "video", "image", "sampled", "at", "from")


def chat_template(video: str, image: str) -> str:
    """Qwen's chat format.

    Args:
        video: what stands for a video; processors put its features there.
        image: likewise for a picture.
    """
    return (
        f"{{% for message in messages %}}{START}{{{{ message['role'] }}}} "
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'video' %}}{video}"
        f"{{% elif part['type'] == 'image' %}}{image}"
        f"{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}{END}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{START}assistant {{% endif %}}"
    )


CHAT_TEMPLATE = chat_template("<|video_pad|>", "<|vision_start|><|image_pad|><|vision_end|>")


def tiny_tokenizer(
    words: Iterable[str],
    named: Mapping[str, str] = QWEN_TOKENS,
    extra: Sequence[str] = (),
    template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over ``words``, digits, punctuation and special tokens.

    Args:
        words: what it must know besides.
        named: special tokens by the attribute under which a processor looks for them, ``video_token`` among them.
        extra: further special tokens.
        template: of chats; by default Qwen's format with the video and image token where those stand.
    """
    special = [PAD, START, END, *named.values(), *extra]
    spoken = ["<unk>", "user", "assistant", "system", "seconds", *string.digits, *"<>.,:!?", *sorted(set(words))]
    vocab = {word: index for index, word in enumerate(dict.fromkeys([*special, *spoken]))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    splits = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\d|[<>.,:!?]"), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    if template is None:
        template = chat_template(named["video_token"], named.get("image_token", ""))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START, *extra],
        model_specific_special_tokens=dict(named),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )
