"""Everything the screen shows, as a fold over messages: no clock, no widget, bounded in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.events import Prefilled, PromptEnded, Round, RunEnded, RunStarted
from specprof.profiling.feed import Device, Dropped, Failed, Going, Kept, Loading, Message, Prompts, PromptText, Texts
from specprof.profiling.metrics import BASELINE
from specprof.profiling.pieces import Piece, TokenReader, first_piece, pieces_of
from specprof.profiling.round_costs import Costs, costs_of, explanation_of
from specprof.profiling.speedup import Speedup, speedup_of
from specprof.tui.rounds import STAGES, RoundView, Stage, view
from specprof.tui.run_facts import RunFacts, facts
from specprof.tui.transcript import Gap, Heading, Tokens, Transcript

RECENT_ROUNDS = 50
"""What ``recent`` figures are of."""
_COST_ROUNDS = 500
"""Of each arm, the latest; medians of more would say the same."""
_RESAMPLED, _FEWEST_RESAMPLES = 100_000, 500
"""Of the bootstrap while a run goes on: prompts times resamples."""

ArmName = Literal["AR", "SD"]
Status = Literal["loading", "running", "paused", "finished", "failed"]


@dataclass(slots=True)
class PhaseTimes:
    """Seconds of rounds by phase; they sum to the rounds' wall time."""

    draft: float = 0.0
    verify: float = 0.0
    sample: float = 0.0
    overhead: float = 0.0
    rounds: int = 0
    tokens: int = 0

    def add(self, round: Round) -> None:
        self.draft += round.draft_seconds
        self.verify += round.verify_seconds
        self.sample += round.sample_seconds
        self.overhead += round.overhead_seconds
        self.rounds += 1
        self.tokens += len(round.emitted_tokens)

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> PhaseTimes:
        times = cls()
        for round in rounds:
            times.add(round)
        return times

    @property
    def seconds(self) -> float:
        return self.draft + self.verify + self.sample + self.overhead

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds > 0 else None


@dataclass(slots=True)
class Generation:
    """One text while it grows."""

    prompt_id: str
    repetition: int
    number: int
    """In its arm, from 1."""
    prefill_seconds: float
    num_tokens: int = 1
    decode_seconds: float = 0.0
    next_round: int = 0
    whole: bool = True
    """No event of it was dropped."""
    ended: bool = False
    rounds: list[Round] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt_id, self.repetition


@dataclass(slots=True)
class Arm:
    """One of the two decoders in this run."""

    name: ArmName
    transcript: Transcript = field(default_factory=Transcript)
    times: PhaseTimes = field(default_factory=PhaseTimes)
    """Of the whole run."""
    latest: deque[Round] = field(default_factory=lambda: deque(maxlen=_COST_ROUNDS))
    generation: Generation | None = None
    num_generations: int = 0
    """Begun so far."""
    measured: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """By prompt id, seconds and tokens of decoding: of generations that nobody interfered with."""
    undisturbed: deque[Round] = field(default_factory=lambda: deque(maxlen=_COST_ROUNDS))
    """Rounds of those, the latest."""
    reader: TokenReader | None = None

    @property
    def recent(self) -> PhaseTimes:
        """Of the last :data:`RECENT_ROUNDS` rounds."""
        rounds = list(self.latest)
        return PhaseTimes.of(rounds[-RECENT_ROUNDS:])

    @property
    def decoding(self) -> bool:
        return self.generation is not None and not self.generation.ended

    def miss(self) -> None:
        """Some of the text was dropped on its way."""
        if self.generation is not None:
            self.generation.whole = False
        if not isinstance(self.transcript.at(self.transcript.end - 1), Gap):
            self.transcript.add(Gap())


@dataclass(frozen=True, slots=True)
class Figures:
    """What the finished generations come to so far."""

    speedup: Speedup | None
    costs: Costs | None
    explanation: str | None


class TuiState:
    """Apply messages in the order they come; read whatever is to be shown."""

    def __init__(self) -> None:
        self.revision = 0
        """Goes up with every change."""
        self.status: Status = "loading"
        self.loading: Loading | None = None
        self.failure: Failed | None = None
        self.device: Device | None = None
        self.num_dropped = 0
        self.kept: list[str] = []
        """Files of the runs of this session, the latest last."""
        self.prompts: dict[str, PromptText] = {}
        self.stepping = False
        """A round that comes in is shown stage by stage, by :meth:`reveal`."""
        self.racing = False
        """Both arms decode the prompt at once."""
        self._texts: dict[str, str] = {}
        self._selected: int | None = None
        self._staged: tuple[RoundView, tuple[Piece, ...]] | None = None
        self._new_run(None)

    def _new_run(self, run: RunFacts | None) -> None:
        self.run = run
        # What was generated before stays readable, the counts begin anew.
        before: dict[ArmName, Arm] = getattr(self, "arms", {})
        self.arms: dict[ArmName, Arm] = {
            name: Arm(name, transcript=before[name].transcript if name in before else Transcript())
            for name in ("AR", "SD")
        }
        self.acceptance = AcceptanceCounts(greedy=run.greedy if run else False)
        self.recent_accepted: deque[tuple[int, int]] = deque(maxlen=RECENT_ROUNDS)
        """Accepted and drafted of the latest complete rounds."""
        self.measured_seconds = 0.0
        """Of all prefills and rounds: the run's own time, in which no pause counts."""
        self.num_ended = 0
        """Generations."""
        self.num_interactive = 0
        """Of them, those that somebody interfered with."""
        self._undisturbed = AcceptanceCounts(greedy=self.acceptance.greedy)
        """Of texts that nobody interfered with."""
        self._figures: Figures | None = None

    # What is shown

    @property
    def caveats(self) -> tuple[str, ...]:
        """Of the run: nothing beside its numbers matters more."""
        return () if self.run is None else self.run.caveats

    @property
    def figures(self) -> Figures:
        """Of texts that nobody interfered with; computed again when a prompt has been decoded by both arms."""
        if self._figures is None:
            ar, sd = self.arms["AR"], self.arms["SD"]
            seed = self.run.seed if self.run else 0
            # The exact interval takes a second of a thousand prompts: it is for the end.
            resamples = (
                None if self.status == "finished" else max(_FEWEST_RESAMPLES, _RESAMPLED // (len(sd.measured) or 1))
            )
            speedup = speedup_of(ar.measured, sd.measured, seed, resamples)
            costs = costs_of(list(ar.undisturbed), list(sd.undisturbed), self._undisturbed)
            self._figures = Figures(speedup, costs, explanation_of(speedup, costs))
        return self._figures

    @property
    def shown(self) -> RoundView | None:
        """The round whose details are on the screen: the one being stepped through, the selected one, or the last."""
        if self._staged is not None and self._selected is None:
            return self._staged[0]
        number = self.selected
        return None if number is None else self._view(number)

    @property
    def selected(self) -> int | None:
        """Number of the entry of the speculative transcript that is selected, or of the last round."""
        transcript = self.arms["SD"].transcript
        if self._selected is not None and transcript.round_at(self._selected) is not None:
            return self._selected
        return transcript.round_before(transcript.end)

    @property
    def follows(self) -> bool:
        """The latest round is shown, whichever that is."""
        return self._selected is None

    # What a person does

    def select(self, number: int | None) -> None:
        """Show a round's details; None follows the latest."""
        transcript = self.arms["SD"].transcript
        self._selected = number if number is not None and transcript.round_at(number) is not None else None
        self.revision += 1

    def select_neighbour(self, step: Literal[-1, 1]) -> None:
        """The round before or after; after the last one the latest is followed again."""
        transcript = self.arms["SD"].transcript
        here = self.selected
        if here is None:
            return
        if step < 0:
            before = transcript.round_before(here)
            self.select(here if before is None else before)
        else:
            self.select(transcript.round_after(here))

    def reveal(self) -> bool:
        """Show the next stage of the round that is stepped through; False if there is none to show."""
        if self._staged is None:
            return False
        staged, pieces = self._staged
        stage = STAGES[min(STAGES.index(staged.stage) + 1, len(STAGES) - 1)]
        self._staged = (staged.at(stage), pieces)
        if stage == STAGES[-1]:
            self._commit()
        self.revision += 1
        return True

    @property
    def stage(self) -> Stage | None:
        """Of the round that is stepped through; None if none is half shown."""
        return None if self._staged is None else self._staged[0].stage

    # What happens

    def apply(self, message: Message) -> None:
        """Take one message."""
        self.revision += 1
        match message:
            case RunStarted():
                self._commit()
                self._new_run(facts(message))
                self.status = "running"
                self.loading = None
            case Prefilled():
                self._commit()
                self._prefilled(message)
            case Round():
                self._commit()
                self._round(message)
            case PromptEnded():
                self._commit()
                self._ended(message)
            case RunEnded():
                self._commit()
            case Loading():
                self.status, self.loading = "loading", message
            case Prompts():
                self.prompts = {prompt.prompt_id: prompt for prompt in message.prompts}
            case Texts():
                self._texts.update(message.tokens)
            case Going():
                self.status = message.mode
                if message.mode == "finished":
                    self._figures = None
            case Device():
                self.device = message
            case Dropped():
                self._dropped(message)
            case Kept():
                if message.path is not None:
                    self.kept.append(message.path)
            case Failed():
                self._commit()
                self.status, self.failure = "failed", message

    def _dropped(self, message: Dropped) -> None:
        """Of whichever text is being generated: what comes next need not show it."""
        if message.events > self.num_dropped:
            for arm in self.arms.values():
                if arm.decoding and arm.generation is not None:
                    arm.miss()
        self.num_dropped = message.events

    def _prefilled(self, event: Prefilled) -> None:
        arm = self._arm(event)
        other = self.arms["AR" if arm.name == "SD" else "SD"].generation
        self.racing = other is not None and not other.ended and other.key == (event.prompt_id, event.repetition)
        if other is not None and not self.racing:
            other.ended = True  # if it wasn't, it has been left for this one
        self.measured_seconds += event.seconds
        arm.num_generations += 1
        arm.reader = TokenReader(self._texts)
        arm.generation = Generation(event.prompt_id, event.repetition, arm.num_generations, event.seconds)
        known = self.prompts.get(event.prompt_id)
        domain = known.domain if known else self.run.domain_of.get(event.prompt_id) if self.run else None
        arm.transcript.add(Heading(event.prompt_id, domain, known.text if known else "", arm.num_generations))
        arm.transcript.add(Tokens((first_piece(event, arm.reader),)))

    def _round(self, event: Round) -> None:
        arm = self._arm(event)
        generation = self._continued(arm, event)
        if event.index != generation.next_round:
            arm.miss()
        generation.next_round = event.index + 1
        generation.num_tokens += len(event.emitted_tokens)
        generation.decode_seconds += event.seconds
        generation.rounds.append(event)
        assert arm.reader is not None
        pieces = tuple(pieces_of(event, arm.reader))
        if self.stepping and event.draft_tokens:
            self._staged = (self._viewed(event, pieces).at("draft"), pieces)
        else:
            self._count(arm, event, pieces)

    def _continued(self, arm: Arm, event: Round) -> Generation:
        """The generation a round belongs to; a new one if its beginning was dropped."""
        generation = arm.generation
        if generation is None or generation.key != (event.prompt_id, event.repetition):
            arm.num_generations += 1
            arm.reader = TokenReader(self._texts)
            generation = Generation(event.prompt_id, event.repetition, arm.num_generations, 0.0, whole=False)
            arm.generation = generation
        return generation

    def _commit(self) -> None:
        """A round that is stepped through joins the others when its last stage is shown, or when time goes on."""
        if self._staged is not None:
            staged, pieces = self._staged
            self._staged = None
            self._count(self.arms["SD"], staged.round, pieces)

    def _count(self, arm: Arm, event: Round, pieces: tuple[Piece, ...]) -> None:
        arm.transcript.add(Tokens(pieces, event))
        arm.times.add(event)
        self.measured_seconds += event.seconds
        arm.latest.append(event)
        if arm.name == "SD":
            self.acceptance.observe(event)
            if event.draft_tokens and not event.cut:
                self.recent_accepted.append((event.num_accepted, len(event.draft_tokens)))

    def _ended(self, event: PromptEnded) -> None:
        arm = self._arm(event)
        generation = arm.generation
        self.num_ended += 1
        if generation is None or generation.key != (event.prompt_id, event.repetition):
            return
        generation.ended = True
        rounds, generation.rounds = generation.rounds, []
        if arm.reader is not None and (rest := arm.reader.rest()):
            arm.transcript.add(Tokens((Piece(rest, "plain"),)))
        if event.interactive:
            self.num_interactive += 1
        elif generation.whole:
            times = arm.measured.setdefault(event.prompt_id, [])
            times.append((generation.decode_seconds, generation.num_tokens - 1))
            arm.undisturbed.extend(rounds)
            if arm.name == "SD":
                for round in rounds:
                    self._undisturbed.observe(round)
            if all(event.prompt_id in each.measured for each in self.arms.values()):
                self._figures = None

    def _arm(self, event: Prefilled | Round | PromptEnded) -> Arm:
        return self.arms["AR" if event.decoder == BASELINE else "SD"]

    def _view(self, number: int) -> RoundView | None:
        entry = self.arms["SD"].transcript.at(number)
        if not isinstance(entry, Tokens) or entry.round is None:
            return None
        return self._viewed(entry.round, entry.pieces)

    def _viewed(self, round: Round, pieces: tuple[Piece, ...]) -> RoundView:
        run = self.run
        return view(round, pieces, greedy=run is not None and run.greedy, synthetic=run is not None and run.synthetic)
