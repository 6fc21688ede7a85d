"""``python -m orlaif.demo``."""

from orlaif.demo.demo import main

main()
