"""Experiments: what to run, running it, and keeping what happened."""
