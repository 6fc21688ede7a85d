"""``python -m orlaif.demo``."""

from __future__ import annotations

import argparse

from orlaif.stages import stage
from orlaif.status_line import StatusLine


def main() -> None:
    """Fine-tune a tiny video-language model from an oracle's ranking, and show what it gained."""
    parser = argparse.ArgumentParser(prog="python -m orlaif.demo", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="outputs/demo")
    parser.add_argument("--recipes", default="recipes")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--think", action="store_true", help="answers in tags (recipes/demo_think.yaml)")
    kind.add_argument("--grounding", action="store_true", help="when events happen (recipes/demo_grounding.yaml)")
    arguments = parser.parse_args()
    with StatusLine(what="demo").running():
        with stage("loading libraries"):
            from orlaif.demo import demo, grounding
        demo.quiet()
        where = (arguments.seed, arguments.output, arguments.recipes)
        if arguments.grounding:
            grounding.show(grounding.GroundingDemo(*where))
        else:
            demo.show(demo.Demo(*where, think=arguments.think))


if __name__ == "__main__":
    main()
