"""Evaluation: what ranks and answers tell about a policy."""
