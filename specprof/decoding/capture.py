"""CUDA graphs: what was launched once, operation by operation, is launched again as one.

Thin on purpose: it knows nothing of decoding. What it captures works on fixed buffers, asks the device for nothing,
and draws random numbers from named generators only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from specprof.errors import ResourceError

Step = Callable[[], None]

WARM_UP_RUNS = 3
"""Before a capture: libraries choose kernels and allocate work space on first use, which can't be captured."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A step that was captured."""

    graph: torch.cuda.CUDAGraph
    step: Step
    """A graph knows addresses, and nothing of whose they are: the step keeps the tensors it was made for."""

    def __call__(self) -> None:
        self.graph.replay()


class Graphs:
    """Captures steps into graphs that share their memory, one device's.

    A step's temporary tensors are at the same addresses in every replay, and other steps' may be there too: what
    outlives a step has to be in tensors that were allocated outside.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        """Spent in capturing so far, warm-up runs included."""
        self.failure: str | None = None
        """Why the last capture failed, if one did."""
        self._stream: torch.cuda.Stream | None = None
        self._latest: torch.cuda.CUDAGraph | None = None

    def capture(self, step: Step, generators: Sequence[torch.Generator], changes: Sequence[Tensor]) -> Step:
        """The step as a graph.

        Args:
            step: what to capture; it is run a few times first.
            generators: that it draws from. They may be seeded anew at any time: a replay goes on from where they are.
            changes: tensors that it reads and changes; they and the generators are left as they were.

        Returns:
            What replays it on the device's current stream.

        Raises:
            ResourceError: something in it can't be captured. The generators should not be used afterwards.
        """
        begin = perf_counter()
        try:
            # A generator's state is allocated with the first graph that draws from it. Allocated in inference mode,
            # it could not be seeded outside of it any more.
            with torch.cuda.device(self.device), torch.inference_mode(False), torch.no_grad():
                replay = self._capture(step, generators, changes)
        except RuntimeError as error:  # torch.OutOfMemoryError, torch.AcceleratorError and cuBLAS's are among them
            self.failure = f"a round can't be captured into a CUDA graph: {_first_line(error)}"
            raise ResourceError(self.failure, "--engine static does the same work without graphs") from error
        self.seconds += perf_counter() - begin
        return replay

    def _capture(self, step: Step, generators: Sequence[torch.Generator], changes: Sequence[Tensor]) -> Step:
        # Not on the stream of captures: cuBLAS keeps work space for each stream, and anyone may have it freed (compiled
        # graphs do). Allocated in a capture it stays in the graphs' memory even then.
        warm_up(step, generators, changes)
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        pool = None if self._latest is None else self._latest.pool()
        # Other threads (who watches the device) may go on calling CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            step()
        # The memory lasts as long as there is a graph in it; those of a lane may all go at once.
        self._latest = graph
        return Replay(graph, step)


def warm_up(step: Step, generators: Sequence[torch.Generator], changes: Sequence[Tensor]) -> None:
    """Run a step a few times from the same state, and leave that state as it was."""
    states = [generator.get_state() for generator in generators]
    before = [tensor.clone() for tensor in changes]
    for _ in range(WARM_UP_RUNS):
        step()
        for tensor, old in zip(changes, before, strict=True):
            tensor.copy_(old)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
