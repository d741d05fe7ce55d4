"""A worker's side of a sweep: one pair's models, and a decoder for each cell that is measured with them."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from specprof.data.prompts import Prompt
from specprof.errors import SpecprofError, UsageError
from specprof.experiments.arms import Arms, Models, compared_vocabularies, load_models, make_arms
from specprof.experiments.config import RunConfig
from specprof.experiments.engine import Decoder
from specprof.experiments.executors import Failed, Job, Ready, failure_of
from specprof.experiments.observer import Observer, text_of
from specprof.experiments.run import (
    TRIAL_PROMPTS,
    EncodedPrompt,
    choose_method,
    encode_prompts,
    energy_meter,
    request_for,
    warm_up,
)
from specprof.profiling import machine
from specprof.profiling.events import Event
from specprof.reproducibility import make_deterministic


@dataclass(slots=True)
class _Cell:
    run: RunConfig
    arms: Arms
    decoder: Decoder
    encoded: dict[str, EncodedPrompt] = field(default_factory=dict)

    def prompt(self, prompt: Prompt) -> EncodedPrompt:
        if prompt.prompt_id not in self.encoded:
            self.encoded[prompt.prompt_id] = encode_prompts(self.run, self.arms, [prompt])[0]
        return self.encoded[prompt.prompt_id]

    def first_prompts(self, prompts: Sequence[Prompt], number: int) -> list[EncodedPrompt]:
        """The first that can be decoded: one that is too long fails where it is measured, not every cell before that.

        Raises:
            UsageError: none can be decoded.
        """
        found: list[EncodedPrompt] = []
        refusal: UsageError | None = None
        for prompt in prompts:
            if len(found) == number:
                break
            try:
                found.append(self.prompt(prompt))
            except UsageError as error:
                refusal = refusal or error
        if refusal is not None and not found:
            raise refusal
        return found


class Bench:
    """Loads a pair once and decodes with it what it is told to, one generation at a time."""

    def __init__(self) -> None:
        self._models: Models | None = None
        self._loaded_from: object = None
        self._cells: dict[str, _Cell] = {}
        self._prompts: dict[str, Prompt] = {}
        self._observer = Observer(str)

    def prepare(self, job: Job) -> Ready:
        """Load the job's models unless they are loaded, make its decoders, and warm all of them up.

        A cell that can't be run with these models is refused by itself.

        Raises:
            UnavailableError, ResourceError: a model can't be had, or doesn't fit.
        """
        self._cells = {}
        self._prompts = {prompt.prompt_id: prompt for prompt in job.prompts}
        runs = list(job.runs.values())
        if any(run.deterministic for run in runs):
            make_deterministic()
        models = self._load(runs)
        refused: dict[str, Failed] = {}
        notes: dict[str, None] = {}
        warm: dict[RunConfig, _Cell] = {}
        for config_hash, run in job.runs.items():
            try:
                found: tuple[str, ...] = ()
                if run in warm:
                    # Another domain of the same run: what was captured and warmed up for one serves the other.
                    cell = warm[run]
                else:
                    cell, found = self._cell(run, models, job.prompts)
                    some = cell.first_prompts(job.prompts, run.warmup)
                    warm_up(run, cell.arms, some, decoders=[cell.decoder])
                    if run.k != "auto":  # which learns, and of each domain for itself
                        warm[run] = cell
            except (SpecprofError, MemoryError, RuntimeError) as error:
                refused[config_hash] = failure_of(error)
            else:
                self._cells[config_hash] = cell
                notes |= dict.fromkeys(found)
        # What loading left behind is collected now, not while something is measured.
        gc.collect()
        description = machine.describe()
        methods = {config_hash: cell.arms.vocab_method for config_hash, cell in self._cells.items()}
        described = next((cell.arms for cell in self._cells.values() if cell.arms.draft), None) or next(
            (cell.arms for cell in self._cells.values()), None
        )
        return Ready(
            description,
            machine.machine_class(description),
            described.describe(runs[0].pair) if described else {},
            tuple(notes),
            methods,
            refused,
            {config_hash: cell.arms.engine_used for config_hash, cell in self._cells.items()},
        )

    @torch.inference_mode()
    def generate(self, config_hash: str, prompt_id: str, repetition: int) -> tuple[Event, ...]:
        """One generation, from its prefill to its end.

        Raises:
            UsageError: the prompt doesn't fit the context.
            ResourceError: memory ran out.
        """
        cell = self._cells[config_hash]
        request = request_for(cell.run, cell.arms, cell.prompt(self._prompts[prompt_id]), repetition)
        return tuple(self._observer.events(cell.decoder, request))

    def _load(self, runs: Sequence[RunConfig]) -> Models:
        drafted = [run for run in runs if run.k != 0]
        wanted = next((run for run in drafted if run.drafter == "model"), None) or (drafted or [_alone(runs[0])])[0]
        key = (wanted.pair, wanted.drafter == "model")
        if self._models is None or key != self._loaded_from:
            self._models = None
            gc.collect()
            self._models = load_models(wanted, compared_vocabularies(wanted))
            self._loaded_from = key
            meter = energy_meter(self._models.target, self._models.draft)
            self._observer = Observer(text_of(self._models.target.tokenizer), meter)
        return self._models

    def _cell(self, run: RunConfig, models: Models, prompts: Sequence[Prompt]) -> tuple[_Cell, tuple[str, ...]]:
        if run.k == 0:
            arms = make_arms(_alone(run), models)
            return _Cell(run, arms, arms.baseline), ()
        arms = make_arms(run, models)
        notes = arms.notes
        if arms.candidates:
            some = _Cell(run, arms, arms.speculative).first_prompts(prompts, TRIAL_PROMPTS)
            arms, finding = choose_method(run, arms, some)
            notes = (*notes, *filter(None, (finding,)))
        return _Cell(run, arms, arms.speculative), notes


def _alone(baseline: RunConfig) -> RunConfig:
    """Plain decoding as a target that drafts nothing for itself: no second model."""
    return dataclasses.replace(baseline, drafter="self")
