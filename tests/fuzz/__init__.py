"""Random command lines, files, folders and environments, and what has to hold whatever they are.

``python -m fuzz --cases 1000 --seed 7`` (with ``tests`` on PYTHONPATH) runs so many; ``--only N`` repeats one. A case
follows from the seed and its number alone.
"""
