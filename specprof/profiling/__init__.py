"""Measurements: the clock, the events, and every number folded from them."""
