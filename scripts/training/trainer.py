"""One training run: batches, a learning rate that rises, stays and falls, checkpoints to go on from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

WARM_UP = 50
"""Steps."""
FALLS_FROM = 0.3
"""Of the run: where the learning rate begins to fall, in a straight line to zero."""

Batch = Callable[[int, int, int], Tensor]
"""``(step, rows, length)`` to tokens ``[rows, length]``, always the same ones for a step."""
Loss = Callable[[Tensor], Tensor]
"""Tokens ``[rows, length]`` to nats per token, a scalar."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run goes.

    Args:
        tokens: to be trained on in all.
        rows, length: of a batch at first.
        long: what the length is in the end; the rows become fewer.
        long_from: of the run, from where on. A model that reads short windows for long forgets what is beyond them.
        matrices: learning rate of the matrices inside the layers, which Muon turns.
        others: that of the embedding and the norms, which AdamW turns.
    """

    tokens: int
    rows: int = 32
    length: int = 256
    long: int = 1024
    long_from: float = 0.85
    matrices: float = 2e-3
    others: float = 1e-3
    weight_decay: float = 0.1

    def shape(self, done: float) -> tuple[int, int]:
        """Rows and length of the next batch, ``done`` (0 to 1) of the run being over."""
        if done < self.long_from:
            return self.rows, self.length
        return max(1, self.rows * self.length // self.long), self.long

    def rate(self, step: int, done: float) -> float:
        """Of the full learning rate."""
        return min(1.0, (step + 1) / WARM_UP, (1 - done) / (1 - FALLS_FROM))


@dataclass(slots=True)
class Progress:
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Optimizers:
    """Muon (Jordan et al. 2024) for matrices, AdamW for what is none or is looked up by rows."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (matrices if parameter.dim() == 2 and "embed" not in name else others).append(parameter)
        decay = plan.weight_decay
        self._all: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=plan.matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=plan.others, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self._rates = (plan.matrices, plan.others)

    def step(self, rate: float) -> None:
        for optimizer, full in zip(self._all, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = full * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, object]]:
        return [each.state_dict() for each in self._all]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        for each, state in zip(self._all, states, strict=True):
            each.load_state_dict(state)


def train(
    model: nn.Module,
    loss_of: Loss,
    batch: Batch,
    plan: Plan,
    checkpoint: Path,
    *,
    every: float,
    report: Callable[[Progress, float], None],
) -> Progress:
    """Train ``model`` in place, from its last checkpoint where there is one.

    Args:
        batch: of tokens, on the device of the model.
        checkpoint: a file, written every ``every`` seconds and at the end; a run that was stopped goes on from it.
        report: is called as often, with the mean loss since.

    Raises:
        SystemExit: where the checkpoint is that of another plan.
    """
    optimizers, progress = Optimizers(model, plan), Progress()
    if checkpoint.exists():
        progress = _restored(checkpoint, model, optimizers, plan)
    begin, last, since = time.monotonic() - progress.seconds, time.monotonic(), []
    model.train()
    while progress.tokens < plan.tokens:
        done = progress.tokens / plan.tokens
        tokens = batch(progress.step, *plan.shape(done))
        loss = loss_of(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(plan.rate(progress.step, done))
        since.append(loss.detach())
        progress.step += 1
        progress.tokens += tokens.numel()
        progress.seconds = time.monotonic() - begin
        if time.monotonic() - last > every or progress.tokens >= plan.tokens:
            mean = float(torch.stack(since).mean())
            if mean != mean:
                raise SystemExit("error: the loss is no number any more; start again with lower learning rates")
            _save(checkpoint, model, optimizers, plan, progress)
            report(progress, mean)
            last, since = time.monotonic(), []
    model.eval()
    return progress


def _save(checkpoint: Path, model: nn.Module, optimizers: Optimizers, plan: Plan, progress: Progress) -> None:
    unfinished = checkpoint.with_suffix(".unfinished")
    state = {
        "model": model.state_dict(),
        "optimizers": optimizers.state_dict(),
        "plan": asdict(plan),
        "progress": asdict(progress),
    }
    torch.save(state, unfinished)
    unfinished.replace(checkpoint)


def _restored(checkpoint: Path, model: nn.Module, optimizers: Optimizers, plan: Plan) -> Progress:
    state = torch.load(checkpoint, weights_only=True)
    if state["plan"] != asdict(plan):
        raise SystemExit(f"error: {checkpoint} is of a run with other settings; name another --out, or delete it")
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    return Progress(**state["progress"])
