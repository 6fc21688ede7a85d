"""``python -m orlaif.cli``, the same as the console script."""

from orlaif.cli.main import main

main()
