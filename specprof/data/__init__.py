"""The prompts that are decoded: the packaged ones, and files of the user's own."""
