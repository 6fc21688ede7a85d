"""Class paths and arguments that recipes of earlier versions name, and what they are now.

The one place that keeps an old name: a recipe with an old class path goes on to work, and is told what to write
instead; of an argument that has become another, its error says which.
"""

from __future__ import annotations

import logging
import re

log = logging.getLogger(__name__)

#: The module that a class was in, and the one that it is in now.
MOVED = {
    "orlaif.answers": "orlaif.evaluation.text_metrics",
    "orlaif.callbacks": "orlaif.training.callbacks",
    "orlaif.chat": "orlaif.openai_client",
    "orlaif.data.shapes": "orlaif.demo.shapes",
    "orlaif.evaluated": "orlaif.evaluation.loop",
    "orlaif.module": "orlaif.training.rlaif",
    "orlaif.oracles.training": "orlaif.training.ranker",
    "orlaif.policy_module": "orlaif.training.base",
    "orlaif.preferences": "orlaif.training.preference_sampling",
    "orlaif.sharding": "orlaif.distributed.sharding",
    "orlaif.strategies": "orlaif.distributed.fsdp2",
    "orlaif.supervised": "orlaif.training.supervised",
    "orlaif.vllm_rollout": "orlaif.rollout.vllm",
}
#: Single classes that did not go with their module.
MOVED_CLASSES = {"orlaif.strategies.SafeCheckpointIO": "orlaif.distributed.checkpoint_io.SafeCheckpointIO"}

_NAMES = "|".join(re.escape(name) for name in sorted(MOVED, key=len, reverse=True))
_OLD = re.compile(rf"(?<![\w./-])(?P<module>{_NAMES})\.(?P<name>[A-Za-z]\w*)(?![\w/]|\.\w)")


def translated(text: str, where: str) -> str:
    """A recipe's text or a word of the command line with the class paths of now.

    Args:
        text: of YAML, or a word.
        where: it stands, for the log line that names old and new.
    """
    told: dict[str, str] = {}

    def new(match: re.Match[str]) -> str:
        old = match[0]
        told[old] = MOVED_CLASSES.get(old, f"{MOVED[match['module']]}.{match['name']}")
        return told[old]

    text = _OLD.sub(new, text)
    for old, path in told.items():
        log.info("%s: %s is now %s; please write the new name", where, old, path)
    return text
