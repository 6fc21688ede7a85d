"""What libraries say that is nothing to a user of orlaif: warnings, each by its very words, and why; bars in a log."""

from __future__ import annotations

import logging
import sys
import warnings

#: Messages, as regular expressions of their beginnings.
SILENCED = (
    # The frozen reference is in eval mode on purpose.
    r"Found \d+ module\(s\) in eval mode",
    # Placeholders are masked in a copy of the logits that the warning is about.
    r"FSDP2-wrapped module .* returned a view tensor",
    # `run` starts from Python, on purpose.
    r"LightningCLI's args parameter is intended",
    # Of Lightning's, PEFT's and transformers' own calls; nothing that orlaif passes changes them.
    r".*LeafSpec.* is deprecated",
    r"`past_key_values` is deprecated and will be removed",
    r"`is_gradient_checkpointing` is deprecated and will be removed",
    # A process without rows of a stream, or whose rows are all answered, is in step by a synthetic prompt.
    r"Total length of `\w+` across ranks is zero",
    r"Total length of .* within your local rank is zero",
    # Decoding is threaded inside the loader, which Lightning does not know.
    r"The '\w+' does not have many workers",
    # A resumed run writes into the folder that it is resumed from.
    r"Checkpoint directory .* exists and is not empty",
    # A run may go on in another folder, whose checkpoints are its own to rank.
    r"The dirpath has changed from",
)


class _Advertisement(logging.Filter):
    """Drops Lightning's tips for other products and transformers' twin of a silenced warning."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "litlogger" not in said and "LitLogger" not in said and "`past_key_values`/`cache_params`" not in said


_ADVERTISEMENT = _Advertisement()


def quiet_libraries() -> None:
    """Silence them; may be called again. Where stderr is no terminal, transformers draws no bars of loading either."""
    for message in SILENCED:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "lightning.fabric", "transformers"):
        log = logging.getLogger(name)
        for place in (log, *log.handlers):
            if _ADVERTISEMENT not in place.filters:
                place.addFilter(_ADVERTISEMENT)
    if not sys.stderr.isatty():  # the status line writes a line now and then there
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
