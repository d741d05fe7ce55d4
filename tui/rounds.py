"""One round, position by position: what was drafted, what the target made of it, and why."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from specprof.profiling.events import Round
from specprof.profiling.pieces import Piece
from specprof.profiling.signs import probability, visible

Stage = Literal["draft", "verify", "decision"]
"""How much of a round is shown: whoever steps through it sees one after the other."""
STAGES: tuple[Stage, ...] = ("draft", "verify", "decision")

TokenVerdict = Literal["accepted", "rejected", "not judged"]

COIN = (
    "A coin decides, not the target: each is accepted with the probability that was asked for (--synthetic-acceptance)."
)


@dataclass(frozen=True, slots=True)
class Position:
    """One drafted token."""

    number: int
    """From 1."""
    text: str
    verdict: TokenVerdict
    """``not judged``: one before it was rejected, or ended the text, so it does not matter."""
    greedy: bool
    synthetic: bool = False
    """Acceptance is made up (--synthetic-acceptance)."""
    behind_the_end: bool = False
    """A token before it ended the text."""
    draft_prob: float | None = None
    target_prob: float | None = None
    uniform: float | None = None

    @property
    def ratio(self) -> float | None:
        """min(1, target_prob / draft_prob): how probable it is that the token is accepted. None when greedy."""
        if self.greedy or self.synthetic or self.target_prob is None or self.draft_prob is None:
            return None
        return 1.0 if self.target_prob >= self.draft_prob else self.target_prob / self.draft_prob

    @property
    def why(self) -> str:
        """The rule, with the numbers of this token."""
        if self.verdict == "not judged":
            return "behind the end of the text" if self.behind_the_end else "behind a rejected token"
        if self.synthetic:
            return "decided by a coin, not by the target"
        if self.greedy:
            return "the target's choice too" if self.verdict == "accepted" else "the target chose another"
        if self.ratio is None:
            return ""
        if self.uniform is None:
            return f"accepted with probability {self.ratio:.2f}"
        if self.ratio == 1.0:
            return "the target is at least as sure"
        return f"u {probability(self.uniform)} {'<' if self.verdict == 'accepted' else '>='} {probability(self.ratio)}"


@dataclass(frozen=True, slots=True)
class RoundView:
    """A round and how much of it is shown."""

    round: Round
    positions: tuple[Position, ...]
    last: Piece | None
    """What the target added: the token in the place of the rejected one, or the bonus; None where the text ended."""
    stage: Stage = "decision"
    synthetic: bool = False
    """A coin decided what was accepted, not the target."""

    def at(self, stage: Stage) -> RoundView:
        return dataclasses.replace(self, stage=stage)

    @property
    def headline(self) -> str:
        """What became of it, in one line."""
        k, accepted = len(self.positions), self.round.num_accepted
        if not k:
            return "nothing was drafted: one token of the target's"
        if self.stage == "draft":
            return f"the draft proposes {k}"
        if self.stage == "verify":
            return f"the target reads all {k} in one pass"
        if self.last is None:
            return f"{len(self.round.emitted_tokens)} of {k} accepted, and the text ends"
        return f"{accepted} of {k} accepted + {'bonus' if accepted == k else 'corrected'}"


def view(round: Round, pieces: tuple[Piece, ...], *, greedy: bool, synthetic: bool = False) -> RoundView:
    """A round as positions.

    Args:
        pieces: of the round, as :func:`~specprof.profiling.pieces.pieces_of` makes them.
    """
    drafted = [piece for piece in pieces if piece.kind in ("accepted", "rejected")]
    positions = []
    for index in range(len(round.draft_tokens)):
        behind_the_end = len(round.emitted_tokens) <= min(index, round.num_accepted)
        accepted = index < round.num_accepted and not behind_the_end
        judged = index <= round.num_accepted and not behind_the_end
        # The end of a text cuts what stands behind it: there are no pieces of those.
        text = visible(drafted[index].text) if index < len(drafted) else ""
        positions.append(
            Position(
                number=index + 1,
                text=text,
                verdict="accepted" if accepted else "rejected" if judged else "not judged",
                greedy=greedy,
                synthetic=synthetic,
                behind_the_end=behind_the_end,
                draft_prob=_at(round.draft_prob, index),
                target_prob=_at(round.target_prob, index),
                uniform=_at(round.uniforms, index),
            )
        )
    last = next((piece for piece in pieces if piece.kind in ("corrected", "bonus", "plain")), None)
    return RoundView(round, tuple(positions), last, synthetic=synthetic)


def _at(values: tuple[float, ...] | None, index: int) -> float | None:
    return values[index] if values is not None and index < len(values) else None
