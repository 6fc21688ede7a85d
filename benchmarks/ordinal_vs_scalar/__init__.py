"""Ranks against scores, each mapping with its own tuned learning rate; ``__main__.py`` says what is measured."""
