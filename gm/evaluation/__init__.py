"""Scores that tell whether a model got better."""
