"""Renderings of a comparison: nothing is opened, nothing is computed twice."""
