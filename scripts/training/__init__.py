"""What ``scripts/train_pair.py`` is made of: from a corpus to the pair inside the package."""
