"""The stages as LightningModules: Oracle-RLAIF, supervised fine-tuning, training a ranker; their callbacks."""
