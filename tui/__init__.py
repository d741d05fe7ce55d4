"""The terminal interface: a state that is a fold over messages, and screens that show it."""
