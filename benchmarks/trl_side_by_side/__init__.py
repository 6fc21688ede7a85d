"""TRL's GRPOTrainer and orlaif from one warm start; ``__main__.py`` says what is measured."""
