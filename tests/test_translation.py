"""Between two vocabularies: what is proposed has the law it is said to have, and the draft's context says the same."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, processors
from torch import Tensor

from specprof.decoding.sampling import Sampling, draw, probabilities, random_stream
from specprof.decoding.token_bytes import TokenBytes
from specprof.decoding.translation import SharedVocabulary, TokenIntersection, Translation
from specprof.decoding.vocabulary import compare_vocabularies
from specprof.models.loader import load_tokenizer
from tiny_models import tiny_tokenizer
from tiny_tokenizers import BYTES, SPACE, TEXTS, TRAINED, byte_level, metaspace, train_byte_level

CPU = torch.device("cpu")
TOKENIZERS: dict[str, Callable[[], Any]] = {
    **TRAINED,
    "tiny_dev": tiny_tokenizer,
    "tiny_cross": functools.cache(lambda: load_tokenizer("tiny_cross/draft")),
}
PAIRS = [
    ("metaspace", "byte-level"),
    ("byte-level", "metaspace"),
    ("metaspace pre-tokenizer", "byte-level"),
    ("byte-level", "tiny_dev"),
    ("tiny_cross", "tiny_dev"),
    ("tiny_dev", "tiny_cross"),
]


class Pair:
    """A draft and a target tokenizer, their heads wider than they need, and what stands between them."""

    def __init__(self, draft: Any, target: Any) -> None:
        self.draft, self.target = draft, target
        self.verdict = compare_vocabularies(draft, target, len(draft) + 5, len(target) + 3)
        assert self.verdict.kind == "overlapping"
        self.translation = TokenIntersection(self.verdict, draft, target, CPU)
        draft_bytes, target_bytes = TokenBytes.of(draft), TokenBytes.of(target)
        assert draft_bytes is not None and target_bytes is not None
        self.draft_bytes, self.target_bytes = draft_bytes, target_bytes

    @property
    def mapped(self) -> list[int]:
        return list(self.verdict.to_target)

    def logits(self, rows: int = 4, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return 3 * torch.randn(rows, self.verdict.draft_size, generator=generator, dtype=torch.float64)

    def text(self, context: Sequence[int]) -> bytes:
        return b"".join(self.draft_bytes.by_id.get(token, b"") for token in context)

    def said(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.target_bytes.by_id.get(token, b"") for token in tokens)


@functools.cache
def pair_of(draft: str, target: str) -> Pair:
    return Pair(TOKENIZERS[draft](), TOKENIZERS[target]())


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(*request.param)


SAMPLINGS = [Sampling(1.0), Sampling(0.6), Sampling(1.3, top_k=7), Sampling(1.0, top_p=0.8), Sampling(2.0, 20, 0.9)]


def assert_laws(translation: Translation, logits: Tensor, allowed: Sequence[int], target_size: int) -> None:
    """What must hold of any logits ``[k, draft rows]``: see the comments."""
    for sampling in SAMPLINGS:
        probs = probabilities(translation.restrict(logits), sampling)
        laws = translation.laws(probs)
        assert laws.shape == (len(logits), target_size)
        # All mass lies on tokens that can be proposed, and it is that of a softmax over them alone.
        torch.testing.assert_close(laws.sum(-1), torch.ones(len(logits), dtype=laws.dtype))
        expected = probabilities(logits[:, allowed], sampling)
        theirs = translation.proposed(torch.tensor(allowed))
        torch.testing.assert_close(laws[:, theirs], expected)
        outside = torch.ones(target_size, dtype=torch.bool)
        outside[theirs] = False
        assert not laws[:, outside].any()
        # A proposal and the law it is tested with speak of the same token.
        rows = torch.arange(len(logits))
        assert translation.proposed(probs.argmax(-1)).tolist() == laws.argmax(-1).tolist()
        generator = random_stream(CPU, "draft")
        for _ in range(20):
            drawn = draw(probs, generator)
            assert torch.equal(laws[rows, translation.proposed(drawn)], probs[rows, drawn])
            assert (probs[rows, drawn] > 0).all()


# --- one vocabulary


@pytest.mark.parametrize(
    ("draft_size", "target_size", "withheld"),
    [(9, 9, ()), (9, 12, ()), (12, 9, ()), (9, 9, (3, 8)), (9, 12, (8,)), (12, 9, (2, 8, 10))],
)
def test_the_laws_of_one_vocabulary(draft_size: int, target_size: int, withheld: tuple[int, ...]) -> None:
    translation = SharedVocabulary(draft_size, target_size, frozenset(withheld))
    logits = torch.randn(4, draft_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    allowed = [i for i in range(min(draft_size, target_size)) if i not in withheld]
    assert_laws(translation, logits, allowed, target_size)


def test_the_context_of_one_vocabulary_is_the_text_itself() -> None:
    translation = SharedVocabulary(9, 12, frozenset({3}))
    tokens = [0, 3, 8, 5]
    assert translation.prompt(tokens) == translation.context(tokens) == tokens
    assert translation.context([9, 11, 2]) == [8, 8, 2]  # rows that the draft lacks: anything may stand in for them
    context = [4, 5, 6]
    assert translation.settle(context) == 3
    assert context == [4, 5, 6]


def test_logits_are_left_as_they_were() -> None:
    logits = torch.zeros(1, 9)
    SharedVocabulary(9, 9, frozenset({3})).restrict(logits)
    pair = pair_of("metaspace", "byte-level")
    wide = pair.logits(1)
    pair.translation.restrict(wide)
    assert torch.equal(logits, torch.zeros(1, 9)) and torch.equal(wide, pair.logits(1))


# --- the intersection of two


def test_the_laws_of_an_intersection(pair: Pair) -> None:
    for seed in range(3):
        assert_laws(pair.translation, pair.logits(seed=seed), pair.mapped, pair.verdict.target_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_every_type(dtype: torch.dtype) -> None:
    pair = pair_of("metaspace", "byte-level")
    restricted = pair.translation.restrict(pair.logits().to(dtype))
    assert restricted.dtype == dtype
    laws = pair.translation.laws(probabilities(restricted, Sampling(1.0)))
    torch.testing.assert_close(laws.sum(-1), torch.ones(4))


def test_what_the_draft_likes_best_is_of_no_account_if_the_target_has_no_token_for_it() -> None:
    pair = pair_of("tiny_cross", "tiny_dev")
    logits = pair.logits()
    unmapped = [i for i in range(pair.verdict.draft_size) if i not in pair.verdict.to_target]
    assert unmapped
    logits[:, unmapped] += 100
    assert_laws(pair.translation, logits, pair.mapped, pair.verdict.target_size)
    # Restricted before top-k, not after: or nothing would be left.
    law = pair.translation.laws(probabilities(pair.translation.restrict(logits), Sampling(1.0, top_k=5)))
    assert (law > 0).sum(-1).tolist() == [5] * 4


def test_proposals_are_tokens_of_the_target(pair: Pair) -> None:
    theirs = pair.translation.proposed(torch.tensor(pair.mapped)).tolist()
    assert theirs == list(pair.verdict.to_target.values())
    assert pair.draft.eos_token_id in pair.mapped
    assert pair.verdict.to_target[pair.draft.eos_token_id] == pair.target.eos_token_id


# --- a context in other tokens


def test_mapped_tokens_are_one_for_one(pair: Pair) -> None:
    for own, theirs in pair.verdict.to_target.items():
        assert pair.translation.context([theirs]) == [own]
    several = list(pair.verdict.to_target.values())[:50]
    assert pair.translation.context(several) == pair.mapped[:50]


def test_tokens_of_no_draft_token_are_their_bytes(pair: Pair) -> None:
    unmapped = pair.target_bytes.by_id.keys() - pair.verdict.to_target.values()
    assert unmapped
    for token in unmapped:
        own = pair.translation.context([token])
        assert own and pair.text(own) == pair.target_bytes.by_id[token]


def test_special_tokens_say_nothing() -> None:
    target = train_byte_level()
    target.add_tokens([AddedToken("<|user|>", special=True)])
    pair = Pair(TRAINED["metaspace"](), target)
    user, end = len(target) - 1, target.eos_token_id
    padding = len(target)  # a row of the head without a token
    (letter,) = target.encode("e")
    own = pair.translation.context([letter])
    assert pair.translation.context([user]) == pair.translation.context([padding]) == []
    assert pair.translation.context([user, letter, user]) == own
    assert pair.translation.context([letter, end]) == [*own, pair.draft.eos_token_id]


@pytest.mark.parametrize("text", [*TEXTS, "x", "🙂", "\n\n  x", " "])
def test_a_prompt_is_read_by_the_drafts_tokenizer(pair: Pair, text: str) -> None:
    prompt = pair.translation.prompt(pair.target.encode(text, add_special_tokens=False))
    read_alone = text
    if pair.target is TOKENIZERS["metaspace pre-tokenizer"]() and text.startswith(" "):
        read_alone = text[1:]
    assert prompt == (pair.draft.encode(read_alone) or prompt)
    assert prompt


def test_a_prompt_begins_with_the_drafts_own_beginning() -> None:
    draft = metaspace(["<unk>", "<s>", "</s>", *BYTES, SPACE, "a"], eos="</s>")
    draft.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", draft.convert_tokens_to_ids("<s>"))]
    )
    target = byte_level(["<|begin|>", "a", "Ġ"])
    target.add_special_tokens({"bos_token": "<|begin|>"})
    assert Pair(draft, target).translation.prompt([0, 1, 2, 1]) == draft.encode("a a")
    assert draft.encode("a a")[0] == 1


def test_a_prompt_that_ends_inside_a_character() -> None:
    pair = pair_of("metaspace", "byte-level")
    tokens = pair.target.encode("🚀")
    assert len(tokens) > 1
    assert pair.translation.prompt(tokens[:1]) == pair.draft.encode("\ufffd")


def test_a_prompt_that_says_nothing_still_has_a_token() -> None:
    """Or there would be nothing for the draft to go on from."""
    pair = pair_of("byte-level", "metaspace")
    for prompt in ([pair.target.eos_token_id], pair.target.encode(" ", add_special_tokens=False)[:1]):
        own = pair.translation.prompt(prompt)
        assert len(own) == 1 and 0 <= own[0] < pair.verdict.draft_size


# --- settling


@given(
    which=st.sampled_from(PAIRS),
    rounds=st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), max_size=12),
    spoken=st.lists(st.sampled_from([*TEXTS, "🙂 naïve\n\n    x", "日本 語", " a b c d e f"]), max_size=2),
)
def test_settling_changes_the_cut_and_never_the_text(
    which: tuple[str, str], rounds: list[list[int]], spoken: list[str]
) -> None:
    """Whatever the target emits, texts and tokens in no order, ends inside characters among them."""
    pair = pair_of(*which)
    ordinary = [*sorted(pair.target_bytes.by_id), pair.target.eos_token_id]
    emitted = [[ordinary[i % len(ordinary)] for i in tokens] for tokens in rounds]
    for text in spoken:
        tokens = pair.target.encode(text, add_special_tokens=False)
        emitted += [tokens[i : i + 3] for i in range(0, len(tokens), 3)]
    context = pair.draft.encode("Some words to begin with")
    said = pair.text(context)
    for tokens in emitted:
        context += pair.translation.context(tokens)
        said += pair.said(tokens)
        before = list(context)
        stayed = pair.translation.settle(context)
        assert pair.text(context) == said
        assert context[:stayed] == before[:stayed]
        assert context[stayed : stayed + 1] != before[stayed : stayed + 1] or stayed == min(len(before), len(context))
        if context != before:
            # The end of it, from the beginning of a word on.
            assert stayed >= len(before) - 24
            assert context.count(pair.draft.eos_token_id) == before.count(pair.draft.eos_token_id)


def test_a_text_cut_as_the_tokenizer_cuts_it_stays(pair: Pair) -> None:
    for text in TEXTS:
        context = pair.draft.encode(text)
        for end in range(1, len(context) + 1):
            part = context[:end]
            # Cut short, a word may be cut in another way.
            if context[:end] == pair.draft.encode(pair.text(part).decode("utf-8", "replace").removeprefix(" ")):
                assert pair.translation.settle(part) == end
                assert part == context[:end]


def test_a_text_cut_in_the_targets_way_is_cut_in_the_drafts() -> None:
    pair = pair_of("tiny_cross", "tiny_dev")
    text = "def f(one, two, three):\n    for x in one, two:\n        if x in three:\n            return"
    prompt, rest = text[:23], text[23:]
    settled = unsettled = pair.translation.prompt(pair.target.encode(prompt))
    settled = list(unsettled)
    for token in pair.target.encode(rest):
        unsettled += pair.translation.context([token])
        settled += pair.translation.context([token])
        pair.translation.settle(settled)
    assert unsettled != pair.draft.encode(text)
    assert settled == pair.draft.encode(text)


def test_characters_are_put_together() -> None:
    """The target writes a character in pieces; the draft has a token for it."""
    target = byte_level(["Ġa", "Ã", "©", "b"])
    draft = metaspace(["<unk>", *BYTES, SPACE, "a", "é", f"{SPACE}a"], [(SPACE, "a")])
    pair = Pair(draft, target)
    word, accented = draft.convert_tokens_to_ids([f"{SPACE}a", "é"])
    context: list[int] = []
    for token in (0, 0, 0, 1):
        context += pair.translation.context([token])
        assert pair.translation.settle(context) == len(context)
    assert context == [word, word, word, 1 + 0xC3]
    context += pair.translation.context([2])
    assert context[3:] == [1 + 0xC3, 1 + 0xA9]
    assert pair.translation.settle(context) == 3
    assert context == [word, word, word, accented]


def test_nothing_before_a_special_token_is_settled() -> None:
    draft = metaspace(["<unk>", "</s>", SPACE, "a", "b", "ab", f"{SPACE}a"], [(SPACE, "a"), ("a", "b")], eos="</s>")
    pair = Pair(draft, byte_level(["a", "b", "Ġ"]))
    end, space, a, b, ab, word = draft.convert_tokens_to_ids(["</s>", SPACE, "a", "b", "ab", f"{SPACE}a"])
    context = [word, word, word, space, a, b]
    assert pair.translation.settle(context) == 3
    assert context == [word, word, word, word, b]
    context = [word, word, word, end, a, b]
    assert pair.translation.settle(context) == 6
    assert context == [word, word, word, end, a, b]
    context = [a, b, end, word, word, word, a, b]
    assert pair.translation.settle(context) == 6
    assert context == [a, b, end, word, word, word, ab]


def test_a_text_without_words_is_left_alone() -> None:
    pair = pair_of("metaspace", "byte-level")
    contexts: list[list[int]] = [[], pair.draft.encode("1+1=2;" * 20)[1:]]
    for context in contexts:
        before = list(context)
        assert pair.translation.settle(context) == len(before)
        assert context == before
