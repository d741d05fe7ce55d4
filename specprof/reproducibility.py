"""The same numbers again: deterministic kernels."""

from __future__ import annotations

import os


def make_deterministic() -> None:
    """Allow only deterministic kernels, for the rest of the process.

    Sampling needs no global seed: every prompt, repetition and use draws from a stream of its own
    (:func:`specprof.decoding.sampling.random_stream`).
    """
    # Read by cuBLAS when it starts, so before the first use of the GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
