"""Drafting text: the output is the target's own, token for token, whatever the two tokenizers make of it."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.request import Request
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.string_match import StringMatch
from specprof.decoding.token_bytes import TokenBytes
from specprof.errors import UsageError
from specprof.models.kv_cache import KVCache, Slab
from specprof.models.transformer import EarlyStates
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Round
from specprof.profiling.metrics import GenerationResult
from tiny_models import tiny_gpt2, tiny_llama
from tiny_tokenizers import TEXTS, TRAINED, word_piece

torch.set_num_threads(1)

NO_STOP: frozenset[int] = frozenset()
TOKENIZERS: dict[str, Callable[[], Any]] = {**TRAINED, "word piece": functools.cache(word_piece)}
PAIRS = [
    ("word piece", "byte-level"),
    ("word piece", "metaspace"),
    ("byte-level", "metaspace"),
    ("byte-level", "metaspace pre-tokenizer"),
    ("metaspace", "byte-level"),
    ("metaspace pre-tokenizer", "byte-level"),
    ("metaspace", "metaspace pre-tokenizer"),
]
HOSTILE = (
    *TEXTS,
    "The quick 🚀🚀 fox\u0301 jumps over ❤\ufe0f the lazy dog",
    "日本語、中文。한국어 the العربية dog हिन्दी",
    "def f(x):\n\tif x:\n\t    return  1  \n\n\n\n\n\nx = 12345678901234567890\r\n\r\n",
    "a" + " " * 40 + "b" + "\n" * 20 + "\t" * 10 + "c",
    "\x00\x01\x7f\u2028\ufeff\ufffd and \ufffd\ufffd the end",
    "don't  can 't , . ! ( x ) <0x41> <unk> [UNK] ##ing </s",
)


class Reciter(ModelWrapper):
    """Says after every text what it was told to; its cache holds tokens in place of keys."""

    def __init__(self, tokenizer: Any, says: Callable[[list[int]], int], max_context: int | None = None) -> None:
        self.tokenizer, self.says, self.max_context = tokenizer, says, max_context
        self.device, self.name = torch.device("cpu"), "reciter"

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer) + 3

    def new_cache(self, capacity: int) -> KVCache:
        self.check_context(capacity)
        return KVCache(Slab.uniform(1, 1, capacity, 1, dtype=torch.long, device=self.device))

    def extend(self, ids: Tensor, cache: KVCache, num_logits: int = 1, early: EarlyStates | None = None) -> Tensor:
        keys = cache.slab.keys[0]
        assert keys is not None and ids.dtype == torch.long and len(ids) >= num_logits
        end = cache.length + len(ids)
        keys[0, 0, cache.length : end, 0] = ids
        cache.length = end
        text = keys[0, 0, :end, 0].tolist()
        said = [self.says(text[: length + 1]) for length in range(end - num_logits, end)]
        return torch.nn.functional.one_hot(torch.tensor(said), self.vocab_size).float()


def target_of(tokenizer: Any, script: Sequence[int]) -> Reciter:
    """Says these tokens; after anything else, nonsense that depends on all of it."""

    def says(text: list[int]) -> int:
        if text == list(script[: len(text)]) and len(text) < len(script):
            return script[len(text)]
        return hash(tuple(text)) % len(tokenizer)

    return Reciter(tokenizer, says)


def draft_of(tokenizer: Any, text: str, max_context: int | None = None) -> Reciter:
    """Knows the text and says how it goes on, in its own tokens; after anything else, always the same."""
    found, nonsense = TokenBytes.of(tokenizer), 5
    own = tokenizer.encode(text, add_special_tokens=False)

    def without_spaces(ids: Sequence[int]) -> str:
        return "".join(tokenizer.decode(ids, skip_special_tokens=True).split())

    following: dict[str, int] = {without_spaces(own[:i]): own[i] for i in reversed(range(len(own)))}

    def says(context: list[int]) -> int:
        if found is None:  # it can't tell spaces itself
            return following.get(without_spaces(context), nonsense)
        said = b"".join(found.by_id.get(token, b"") for token in context)
        said = said.removeprefix(b" ") if found.kind == "metaspace" else said
        rest = text.encode()[len(said) :]
        return int(found.encode(rest)[0]) if rest and text.encode().startswith(said) else nonsense

    return Reciter(tokenizer, says, max_context)


def accepted(result: GenerationResult) -> int:
    return sum(round.num_accepted for round in result.rounds)


def drafted(result: GenerationResult) -> int:
    return sum(len(round.draft_tokens) for round in result.rounds)


@pytest.mark.parametrize(("draft_kind", "target_kind"), PAIRS)
def test_hostile_texts(draft_kind: str, target_kind: str) -> None:
    draft_tokenizer, target_tokenizer = TOKENIZERS[draft_kind](), TOKENIZERS[target_kind]()
    results = []
    inside_a_character = 0
    for text in HOSTILE:
        script = target_tokenizer.encode(text, add_special_tokens=False)
        target = target_of(target_tokenizer, script)
        drafter = StringMatch(
            draft_of(draft_tokenizer, text),
            target_tokenizer,
            target.vocab_size,
        )
        for prompt_length in (1, 2, 3, len(script) // 2):
            prompt, rest = script[:prompt_length], script[prompt_length:][:40]
            assert AutoregressiveDecoder(target).generate(prompt, len(rest), stop_ids=NO_STOP).generated_ids == rest
            for k in (1, 4):
                result = SpeculativeDecoder(target, drafter, k).generate(prompt, len(rest), stop_ids=NO_STOP)
                assert result.generated_ids == rest
                results.append(result)
                said = len(prompt)
                for round in result.rounds:
                    said += len(round.emitted_tokens)
                    inside_a_character += target_tokenizer.decode(script[:said]).endswith("\ufffd")
    share = sum(map(accepted, results)) / sum(map(drafted, results))
    # The draft knows the text: what is lost is lost between the tokenizers, and where a prompt ends inside a character.
    assert share > (0.1 if draft_kind == "word piece" else 0.5)
    assert inside_a_character > 10


@pytest.mark.parametrize(("draft_kind", "target_kind"), PAIRS)
def test_models_that_know_nothing(draft_kind: str, target_kind: str) -> None:
    """Random weights: nonsense of both, characters begun and never ended among it."""
    draft_tokenizer, target_tokenizer = TOKENIZERS[draft_kind](), TOKENIZERS[target_kind]()
    target = ModelWrapper(
        copy.deepcopy(tiny_gpt2(vocab_size=len(target_tokenizer) + 4)).to(torch.float64), target_tokenizer
    )
    draft = ModelWrapper(
        copy.deepcopy(tiny_llama(vocab_size=len(draft_tokenizer) + 4)).to(torch.float64), draft_tokenizer
    )
    drafter = StringMatch(draft, target_tokenizer, target.vocab_size)
    total = 0
    for text in ("The quick brown", "日本 🚀"):
        prompt = target_tokenizer.encode(text)
        expected = AutoregressiveDecoder(target).generate(prompt, 30, stop_ids=NO_STOP)
        result = SpeculativeDecoder(target, drafter, 3).generate(prompt, 30, stop_ids=NO_STOP)
        assert result.generated_ids == expected.generated_ids
        total += drafted(result)
    assert total > 0


def test_what_the_draft_writes_is_proposed_as_the_target_would_cut_it() -> None:
    text = TEXTS[0]
    target_tokenizer = TOKENIZERS["byte-level"]()
    script = target_tokenizer.encode(text)
    drafter = StringMatch(draft_of(TOKENIZERS["metaspace"](), text), target_tokenizer, len(target_tokenizer))
    drafter.start(Request(tuple(script[:3]), 20), detail=False)
    position = 3
    while position + 4 < len(script):
        drafter.observe((script[position],))
        position += 1
        draft = drafter.propose(3)
        assert draft.probs is None and draft.tokens.dtype == torch.long
        tokens = draft.tokens.tolist()
        # The last may be the beginning of a longer one.
        assert tokens[:-1] == script[position : position + len(tokens) - 1]
        ahead = target_tokenizer.decode(script[position:])
        assert tokens and ahead.startswith(target_tokenizer.decode(tokens))


@pytest.mark.parametrize("draft_kind", ["byte-level", "metaspace", "metaspace pre-tokenizer"])
def test_the_context_says_what_was_emitted(draft_kind: str) -> None:
    """Whatever of the draft was accepted; a character is given to the draft when it is complete."""
    draft_tokenizer, target_tokenizer = TOKENIZERS[draft_kind](), TRAINED["byte-level"]()
    for text in TEXTS:
        chance = random.Random(3)
        script = target_tokenizer.encode(text)
        drafter = StringMatch(draft_of(draft_tokenizer, text), target_tokenizer, len(target_tokenizer))
        position = 2
        drafter.start(Request(tuple(script[:position]), len(script)), detail=False)
        complete = 0
        while position < len(script):
            emitted = script[position : position + chance.randint(1, 4)]
            drafter.observe(emitted)
            position += len(emitted)
            said = target_tokenizer.decode(script[:position])
            if not said.endswith("\ufffd"):
                assert draft_tokenizer.decode(drafter._context) == said
                complete += 1
            drafter.propose(3)
        assert complete > 4


def test_nothing_is_proposed_inside_a_character() -> None:
    target_tokenizer = TRAINED["byte-level"]()
    prompt, rocket = target_tokenizer.encode("The dog "), target_tokenizer.encode("🚀")
    assert len(rocket) > 1
    drafter = StringMatch(draft_of(TRAINED["metaspace"](), "The dog 🚀 the"), target_tokenizer, len(target_tokenizer))
    drafter.start(Request(tuple(prompt), 20), detail=False)
    for token in rocket[:-1]:
        drafter.observe((token,))
        assert drafter.propose(4).tokens.tolist() == []
    drafter.observe((rocket[-1],))
    assert drafter.propose(4).tokens.tolist()


def test_characters_that_are_bytes_to_both_do_not_spoil_one_another() -> None:
    target_tokenizer, text = TRAINED["metaspace"](), "The dog 🚀🚀🛸🚀🛸🛸🚀🛸🚀🚀 the"
    script = target_tokenizer.encode(text)
    target = target_of(target_tokenizer, script)
    drafter = StringMatch(draft_of(TRAINED["byte-level"](), text), target_tokenizer, target.vocab_size)
    result = SpeculativeDecoder(target, drafter, 4).generate(script[:2], len(script) - 2, stop_ids=NO_STOP)
    assert result.generated_ids == script[2:]
    assert accepted(result) == drafted(result) > 15


def test_special_tokens_are_no_text() -> None:
    target_tokenizer = TRAINED["byte-level"]()
    end = target_tokenizer.eos_token_id
    prompt = [end, *target_tokenizer.encode("The quick brown fox"), end]
    drafter = StringMatch(
        draft_of(TRAINED["metaspace"](), "The quick brown fox jumps"), target_tokenizer, len(target_tokenizer)
    )
    drafter.start(Request(tuple(prompt), 20), detail=False)
    drafter.observe((end,))
    proposed = drafter.propose(4).tokens.tolist()
    assert end not in proposed and target_tokenizer.decode(proposed).startswith(" ju")


def test_a_prompt_without_text() -> None:
    target_tokenizer = TRAINED["byte-level"]()
    script = [target_tokenizer.eos_token_id, *target_tokenizer.encode(TEXTS[0])]
    target = target_of(target_tokenizer, script)
    for kind in ("metaspace", "byte-level", "word piece"):
        drafter = StringMatch(draft_of(TOKENIZERS[kind](), TEXTS[0]), target_tokenizer, target.vocab_size)
        result = SpeculativeDecoder(target, drafter, 3).generate(script[:1], 20, stop_ids=NO_STOP)
        assert result.generated_ids == script[1:21]


def test_a_prompt_in_the_drafts_own_tokens() -> None:
    """As a chat template of its own may make it."""
    target_tokenizer, draft_tokenizer = TRAINED["byte-level"](), TRAINED["metaspace"]()
    own = draft_tokenizer.encode("The quick brown")
    drafter = StringMatch(draft_of(draft_tokenizer, TEXTS[0]), target_tokenizer, len(target_tokenizer))
    drafter.start(Request((5, 6), 20, draft_prompt_ids=tuple(own)), detail=False)
    assert drafter._context == own


def test_sampling_is_refused() -> None:
    target_tokenizer = TRAINED["byte-level"]()
    target = target_of(target_tokenizer, target_tokenizer.encode(TEXTS[0]))
    drafter = StringMatch(draft_of(word_piece(), TEXTS[0]), target_tokenizer, target.vocab_size)
    with pytest.raises(UsageError, match="can't be sampled with") as caught:
        SpeculativeDecoder(target, drafter, 3).generate([1, 2], 5, temperature=0.7, stop_ids=NO_STOP)
    assert "--temperature 0" in caught.value.hint and "tli" in caught.value.hint


def test_detail_changes_no_token() -> None:
    target_tokenizer = TRAINED["byte-level"]()
    script = tuple(target_tokenizer.encode(TEXTS[0]))
    target = target_of(target_tokenizer, script)
    drafter = StringMatch(draft_of(TRAINED["metaspace"](), TEXTS[0]), target_tokenizer, target.vocab_size)
    request = Request(script[:4], 20)
    events = [list(SpeculativeDecoder(target, drafter, 3, detail=detail).events(request)) for detail in (False, True)]
    for without, with_detail in zip(*events, strict=True):
        if isinstance(without, Round) and isinstance(with_detail, Round):
            assert without.draft_tokens == with_detail.draft_tokens
            assert without.emitted_tokens == with_detail.emitted_tokens
            assert without.draft_prob is None
            if with_detail.draft_tokens:
                assert with_detail.draft_prob == (1.0,) * len(with_detail.draft_tokens)  # certain of its proposal


def test_a_context_that_runs_out_ends_the_drafts_and_nothing_else() -> None:
    """Hardly any token of this text is one of the draft's: it needs several for each."""
    text = "🚀日本語 中文 " * 12
    target_tokenizer, draft_tokenizer = TRAINED["byte-level"](), TRAINED["metaspace pre-tokenizer"]()
    target_tokenizer = copy.deepcopy(target_tokenizer)
    target_tokenizer.add_tokens(["🚀日本語", " 中文 "])
    script = target_tokenizer.encode(text)
    new = len(script) - 4
    longer = len(draft_tokenizer.encode(text))
    assert longer > 2 * len(script)
    target = target_of(target_tokenizer, script)
    needed = len(draft_tokenizer.encode(target_tokenizer.decode(script[:4]))) + new
    draft = draft_of(draft_tokenizer, text, max_context=needed + 3)
    drafter = StringMatch(draft, target_tokenizer, target.vocab_size)
    expected = AutoregressiveDecoder(target).generate(script[:4], new, stop_ids=NO_STOP)
    result = SpeculativeDecoder(target, drafter, 3).generate(script[:4], new, stop_ids=NO_STOP)
    assert result.generated_ids == expected.generated_ids == script[4:]
    lengths = [len(round.draft_tokens) for round in result.rounds]
    assert lengths[0] > 0 and lengths[-5:] == [0] * 5
    roomy = StringMatch(draft_of(draft_tokenizer, text, max_context=10 * longer), target_tokenizer, target.vocab_size)
    result = SpeculativeDecoder(target, roomy, 3).generate(script[:4], new, stop_ids=NO_STOP)
    assert result.generated_ids == expected.generated_ids
    assert roomy._cache.capacity >= longer > needed  # it grew
    assert drafted(result) > sum(lengths)
