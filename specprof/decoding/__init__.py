"""The decoding loops and what they are made of."""
