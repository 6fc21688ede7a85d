"""``python -m orlaif``, the same as the console script: for launchers that start a module."""

from orlaif.cli.main import main

if __name__ == "__main__":
    main()
