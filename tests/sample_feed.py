"""Runs that no model made, for what shows them: English and Python as tokens, and rounds that keep to the rules.

Everything follows from the arguments, so that a picture of it is the same every time.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from large_run import prompts
from specprof.profiling.events import SCHEMA, Event, Prefilled, PromptEnded, Round, RunEnded, RunStarted

RUN_ID = "20261121-101500-7f3c"
DRAFT_SECONDS = 0.0002
"""Of one drafted token."""
VERIFY_SECONDS = 0.0022
STEP_SECONDS = 0.0020
"""Of the target's pass over one token."""

PASSAGES: Mapping[str, tuple[str, str]] = {
    "code": (
        '    """Length of the longest run of equal items."""\n'
        "    best = count = 0\n"
        "    previous = object()\n"
        "    for item in items:\n"
        "        count = count + 1 if item == previous else 1\n"
        "        best = max(best, count)\n"
        "        previous = item\n"
        "    return best\n\n\n"
        "def merge(left: list[int], right: list[int]) -> list[int]:\n"
        "    merged = []\n"
        "    while left and right:\n"
        "        side = left if left[0] <= right[0] else right\n"
        "        merged.append(side.pop(0))\n"
        "    return merged + left + right\n",
        "    lengths = [len(list(group)) for _, group in groupby(items)]\n"
        "    return max(lengths, default=0)\n\n\n"
        'if __name__ == "__main__":\n'
        '    print(longest_run("aabbbc"))\n',
    ),
    "conversation": (
        " I would start with the small one. It takes about an hour by train, and the old town is close enough to walk "
        "from the station. If the weather holds, have lunch at the caf\u00e9 by the river; they bake their own bread. "
        "The museum is closed on Mondays, so keep it for the second day, when it is also less crowded.",
        " That depends on how much time you have. With one day I would stay in the city and see the market in the "
        "morning, because most of the stalls are gone by noon.",
    ),
    "summarization": (
        " The council voted to reopen the northern line in spring. Two of the three bridges have been repaired, and "
        "the third will carry a single track until the new girders arrive. Fares stay as they are. Residents had "
        "asked for later trains; the operator will try them on Fridays for half a year and then report.",
        " Trains return to the northern line in spring, at the same fares, with one bridge still on a single track. "
        "Later trains are to be tried on Fridays.",
    ),
}
"""By domain; the second is what plain decoding says where both draw at random."""

_EASE = {"code": 0.82, "conversation": 0.66, "summarization": 0.58}
"""How likely the draft has a token right."""
_TOKEN = re.compile(r"\n+(?: *(?= ))?| +(?= )| ?[A-Za-z]{1,8}|\d| ?[!-/:-@\[-`{-~]+|.", re.DOTALL)


def tokenized(text: str) -> list[str]:
    """The texts of a passage's tokens. A character outside of ASCII is as many tokens as it has bytes, each of them
    as :class:`~specprof.profiling.events.PromptEnded` has a byte."""
    pieces: list[str] = []
    for piece in _TOKEN.findall(text):
        if piece.isascii():
            pieces.append(piece)
        else:
            pieces += (bytes([byte]).decode("utf-8", "surrogateescape") for byte in piece.encode())
    return pieces


def hostile_texts() -> dict[str, str]:
    """Texts of tokens that try to be more than text, or are less, by what they are."""
    return {
        "markup": "[bold red on white]loud[/] [/nothing] [@click=app.bell]press[/] \\[",
        "link": "[link=https://evil.example]here[/link]",
        "colour": "\x1b[31mred\x1b[0m\x1b[2J\x1b[H",
        "title": "\x1b]0;owned\x07\x1b]8;;https://evil.example\x07link\x1b]8;;\x07",
        "c1": "\x9b2J\x90q\x9c",
        "carriage return": "kept\rover",
        "bell": "\x07",
        "backspace": "abc\x08\x08\x08xyz",
        "null": "a\x00b\x7f",
        "tab": "\tx\t",
        "newlines": "\n\n\n",
        "vertical": "a\x0bb\x0cc\x85d\u2028e\u2029f",
        "cjk": " \u6f22\u5b57\u304b\u306a\ud55c\uae00\uff21",
        "emoji": " \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea",
        "combining": "e\u0301\u0302\u0303\u0304\u0305\u0306 Z\u0351\u036b\u0343",
        "only combining": "\u0301",
        "zero width": "a\u200bb\u200cc\u200dd\u2060e\ufefff",
        "blank": "\u3164\u115f\u00a0\u3000\u00ad",
        "right to left": "\u202egnp.exe\u202c \u2066x\u2069\u200f",
        "arabic": " \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
        "first bytes": "\udcf0\udc9f",
        "lone byte": "\udcff",
        "surrogate": "\ud800",
        "tags": "\U000e0041\U000e0042",
        "empty": "",
        "spaces": "     ",
        "long": "x" * 10_000,
        "long and wide": "\u6f22" * 3_000,
    }


def sample_run(num_prompts: int = 3, **options: Any) -> list[Event]:
    """What ``specprof run --detail`` would have kept of tiny_dev; the options are those of :func:`sample_events`."""
    return list(sample_events(num_prompts, **options))


def hostile_run(num_prompts: int = 1, **options: Any) -> list[Event]:
    """:func:`sample_run` of :func:`hostile_texts`, each of them at least once in the text of either arm."""
    words = list(hostile_texts().values())
    return sample_run(num_prompts, **({"num_tokens": len(words) + 8} | options), words=words)


def sample_events(
    num_prompts: int = 3,
    *,
    k: int | str = 4,
    temperature: float = 0.8,
    num_tokens: int = 96,
    seed: int = 0,
    repetitions: int = 1,
    baseline: bool = True,
    detail: bool = True,
    words: Sequence[str] | None = None,
    run_id: str = RUN_ID,
    **config: Any,
) -> Iterator[Event]:
    """Each prompt by both arms in turn (ABBA), one event after the other.

    Args:
        words: texts of the tokens, over and over, instead of :data:`PASSAGES`.
        config: what is noted beside the rest, or instead.
    """
    asked = prompts(num_prompts)
    yield RunStarted(
        run_id,
        SCHEMA,
        _config(asked, k, temperature, num_tokens, seed, repetitions, baseline, detail) | config,
        {"cpu": "An EPYC", "cores": 2, "gpu": None, "torch": "2.13.0", "specprof": "0.1.0"},
    )
    vocabulary = _vocabulary(words or ())
    labels = ("AR", f"SD-K{k}") if baseline else (f"SD-K{k}",)
    for repetition in range(repetitions):
        for index, (prompt_id, domain) in enumerate(asked):
            for label in labels if (index + repetition) % 2 == 0 else labels[::-1]:
                draws = seed if temperature == 0 else (seed, repetition, label)
                texts = words or _words(domain, second=temperature > 0 and label == "AR")
                generation = _Generation(
                    (prompt_id, label, repetition),
                    list(itertools.islice(itertools.cycle(texts), num_tokens)),
                    vocabulary,
                    _EASE[domain],
                    temperature,
                    detail,
                    random.Random(f"{draws} {prompt_id}"),
                    random.Random(f"{seed} {prompt_id} {label} {repetition}"),
                )
                yield from generation.events(None if label == "AR" else k)
    yield RunEnded(2**27)


def _words(domain: str, *, second: bool) -> list[str]:
    passages = PASSAGES[domain][::-1] if second else PASSAGES[domain]
    return [word for passage in passages for word in (*tokenized(passage), "\n\n")]


def _config(
    asked: Sequence[tuple[str, str]],
    k: int | str,
    temperature: float,
    num_tokens: int,
    seed: int,
    repetitions: int,
    baseline: bool,
    detail: bool,
) -> dict[str, Any]:
    """As ``specprof run`` notes it."""
    return {
        "pair": {
            "name": "tiny_dev",
            "draft_model_id": "tiny_dev/draft",
            "target_model_id": "tiny_dev/target",
            "draft_dtype": "float16",
            "target_dtype": "float16",
            "notes": "",
        },
        "k": k,
        "k_max": None,
        "drafter": "model",
        "draft_layers": None,
        "draft_threshold": 0.0,
        "vocab_method": None,
        "temperature": temperature,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": num_tokens,
        "seed": seed,
        "warmup": 1,
        "repetitions": repetitions,
        "baseline": baseline,
        "device": None,
        "device_map": None,
        "forward": "auto",
        "ignore_eos": False,
        "detail": detail,
        "deterministic": False,
        "engine": "auto",
        "compile": False,
        "chat_template": "auto",
        "random_weights": False,
        "scale_layers": None,
        "synthetic_acceptance": None,
        "revision": None,
        "offline": False,
        "trust_remote_code": False,
        "caveats": [],
        "models": {
            role: {
                "model": f"tiny_dev/{role}",
                "parameters": parameters,
                "memory_bytes": 4 * parameters,
                "stored_dtype": "float16",
                "dtype": "float32",
                "device": "cpu",
                "forward": "own",
                "why_not_own": None,
                "why_not_native": None,
            }
            for role, parameters in (("target", 7_278_848), ("draft", 713_088))
        },
        "load_peak_memory_bytes": 2**26,
        "vocabulary": {
            "kind": "identical",
            "draft_size": 4096,
            "target_size": 4096,
            "shared": 4096,
            "reason": "4096 tokens, all equal",
        },
        "cost_curve": None,
        "prompts": [{"prompt_id": prompt_id, "domain": domain} for prompt_id, domain in asked],
        "command": "specprof run --pair tiny_dev --detail",
    }


def _vocabulary(words: Sequence[str]) -> dict[str, int]:
    """Tokens by their texts: those of the passages are the same in every run."""
    passages = (word for domain in PASSAGES for word in _words(domain, second=False))
    return {word: 100 + index for index, word in enumerate(dict.fromkeys((" other", *passages, *words)))}


class _Generation:
    """One text by one arm.

    Args:
        key: prompt, decoder, repetition.
        words: what it says.
        ease: how likely the draft has a token right.
        draws: what chance decides of tokens.
        noise: what it decides of times.
    """

    def __init__(
        self,
        key: tuple[str, str, int],
        words: Sequence[str],
        vocabulary: Mapping[str, int],
        ease: float,
        temperature: float,
        detail: bool,
        draws: random.Random,
        noise: random.Random,
    ) -> None:
        self.key = key
        self.vocabulary = vocabulary
        self.tokens = [vocabulary[word] for word in words]
        self.others = sorted(set(self.tokens))
        self.ease = ease
        self.temperature = temperature
        self.detail = detail
        self.draws = draws
        self.noise = noise

    def events(self, k: int | str | None) -> Iterator[Event]:
        draft_seconds = 0.0 if k is None else self._about(0.001)
        yield Prefilled(*self.key, 40, self.tokens[0], self._about(0.011), draft_seconds, self._about(0.0003), 2**26)
        place, index, seen = 1, 0, {self.tokens[0]}
        while place < len(self.tokens):
            wanted = 0 if k is None else (2, 4, 6, 4)[index % 4] if k == "auto" else int(k)
            round = self._round(index, place, wanted, drafter=k is not None)
            seen.update(round.draft_tokens, round.emitted_tokens)
            yield round
            place, index = place + len(round.emitted_tokens), index + 1
        texts = {str(token): word for word, token in self.vocabulary.items() if token in seen}
        yield PromptEnded(*self.key, "length", 2**27, token_texts=None if self.key[2] else texts)

    def _round(self, index: int, place: int, wanted: int, *, drafter: bool) -> Round:
        k = min(wanted, len(self.tokens) - place - 1)
        accepted = 0
        while accepted < k and self.draws.random() < self.ease:
            accepted += 1
        drafted = [*self.tokens[place : place + accepted], *self.draws.choices(self.others, k=k - accepted)]
        if accepted < k and drafted[accepted] == self.tokens[place + accepted]:
            # What is rejected is not what replaces it; a text of one token alone has no other.
            at = self.others.index(drafted[accepted])
            drafted[accepted] = self.others[at - 1] if len(self.others) > 1 else self.vocabulary[" other"]
        numbers: dict[str, Any] = {}
        if k and (self.temperature > 0 or self.detail):
            names = ("target_prob", "draft_prob", "alpha", *(("uniforms",) if self.temperature > 0 else ()))
            judged = self._sampled if self.temperature > 0 else self._greedy
            columns = zip(*(judged(position < accepted) for position in range(k)), strict=True)
            numbers = dict(zip(names, columns, strict=False))
        return Round(
            *self.key,
            index,
            tuple(drafted),
            accepted,
            tuple(self.tokens[place : place + accepted + 1]),
            self._about(DRAFT_SECONDS * k + 0.00004) if drafter else 0.0,
            self._about(VERIFY_SECONDS if drafter else STEP_SECONDS),
            self._about(0.00025 if k else 0.00006),
            self._about(0.00008 if drafter else 0.00001),
            cut=k < wanted,
            k=k if drafter else None,
            **numbers,
        )

    def _sampled(self, accepted: bool) -> tuple[float, ...]:
        """Probabilities of a drafted token, alpha, and a random number by which the rule decides as it is to."""
        while True:
            target, draft = (round(self.draws.betavariate(*shape), 6) for shape in self._shapes(accepted))
            uniform = round(self.draws.random(), 6)
            if (uniform * draft < target) == accepted:
                break
        # The sum of the smaller ones over the vocabulary: this token's, and something of what is left for the others.
        alpha = min(target, draft) + (1 - max(target, draft)) * self.draws.uniform(0.4, 0.95)
        numbers = (target, draft, round(alpha, 6), uniform)
        return numbers if self.detail else numbers[:3]

    def _greedy(self, accepted: bool) -> tuple[float, ...]:
        """Probabilities of a drafted token, and whether it is the target's choice."""
        target, draft = (round(self.draws.betavariate(*shape), 6) for shape in self._shapes(accepted))
        return (max(target, 0.5), draft, 1.0) if accepted else (min(target, 0.45), draft, 0.0)

    def _shapes(self, accepted: bool) -> tuple[tuple[float, float], tuple[float, float]]:
        return ((6.0, 2.0), (5.0, 2.5)) if accepted else ((0.6, 6.0), (2.0, 3.0))

    def _about(self, seconds: float) -> float:
        return round(seconds * self.noise.lognormvariate(0, 0.06), 9)
