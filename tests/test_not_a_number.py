"""A model whose logits are not numbers: told, named and ended, wherever it happens, whoever runs it."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from command_line import QUICK, command, isolate
from packaged import new_token
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.decoder import EventDecoder
from specprof.decoding.drafters import Drafter, DraftModel, LayerSkip, NGramLookup
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.static import StaticDecoder
from specprof.decoding.string_match import StringMatch
from specprof.errors import CorrectnessError
from specprof.models.native.library import library
from specprof.models.wrapper import ForwardName, ModelWrapper
from specprof.profiling.events import PromptEnded, Round
from specprof.profiling.metrics import fold
from tiny_models import SMALL, VOCAB_SIZE, random_model, save_model_dir, tiny_tokenizer

torch.set_num_threads(1)

PROMPT = (5, 9, 300, 22, 17)
LENGTH = 24
NO_NUMBERS, SOME_FAILED = 6, 7
NAN, INF = float("nan"), float("inf")

ENGINES: dict[str, tuple[ForwardName, bool]] = {
    "native": ("native", False),
    "own": ("own", False),
    "hf": ("hf", False),
    "static": ("own", True),
}
"""Whose forward, and whether rounds are static."""


@functools.cache
def network(seed: int = 0) -> Any:
    """A target (0) or a draft that is much like it; heads are as wide as the forward in C likes them."""
    from transformers import LlamaConfig

    values: dict[str, Any] = SMALL | {"hidden_size": 64, "intermediate_size": 64}
    model = random_model(LlamaConfig(vocab_size=VOCAB_SIZE, **values))
    draws = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data += 0.15 * seed * weight.std() * torch.randn(weight.shape, generator=draws)
    return model


def wrapped(model: Any, name: str, forward: ForwardName = "own") -> ModelWrapper:
    if forward == "native" and isinstance(why_not := library(), str):
        pytest.skip(why_not)
    return ModelWrapper(model, tiny_tokenizer(), forward=forward, name=name, measure_linear=False)


def after(token: int, model: Any) -> Any:
    """The model, in which no logit is a number once it has read a token."""
    broken = copy.deepcopy(model)
    broken.model.embed_tokens.weight.data[token] = NAN
    return broken


def decoders(target: ModelWrapper, draft: ModelWrapper, *, static: bool) -> dict[str, EventDecoder]:
    if static:
        return {
            "AR": StaticDecoder(target, None, capture=False),
            "SD": StaticDecoder(target, DraftModel(draft), 3, capture=False),
            "SD with detail": StaticDecoder(target, DraftModel(draft), 3, capture=False, detail=True),
            "SD of chance": StaticDecoder(target, DraftModel(draft), 3, capture=False, synthetic_acceptance=0.5),
        }
    return {
        "AR": AutoregressiveDecoder(target),
        "SD": SpeculativeDecoder(target, DraftModel(draft), 3),
        "SD with detail": SpeculativeDecoder(target, DraftModel(draft), 3, detail=True),
        "SD of chance": SpeculativeDecoder(target, DraftModel(draft), 3, synthetic_acceptance=0.5),
        "SD that ends drafts early": SpeculativeDecoder(target, DraftModel(draft, threshold=0.2), 3),
        "K = 0": SpeculativeDecoder(target, DraftModel(draft), 0),
        "n-grams": SpeculativeDecoder(target, NGramLookup(target.vocab_size, target.device), 3),
    }


def request(temperature: float, top_k: int = 0, top_p: float = 1.0) -> Request:
    return Request(PROMPT, LENGTH, Sampling(temperature, top_k, top_p), prompt_id="p1")


def text_of(decoder: EventDecoder, asked: Request) -> list[int]:
    (result,) = fold(decoder.events(asked))
    return result.generated_ids


def told(decoder: EventDecoder, asked: Request) -> tuple[str, int]:
    """What a decoder ends with, and how many tokens it emitted before that."""
    emitted = 0
    try:
        for event in decoder.events(asked):
            assert not isinstance(event, PromptEnded)
            emitted += len(event.emitted_tokens) if isinstance(event, Round) else 1
    except CorrectnessError as error:
        return error.message, emitted
    raise AssertionError("it said nothing")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("engine", ENGINES)
def test_whoever_runs_it_wherever_it_breaks(engine: str, temperature: float) -> None:
    forward, static = ENGINES[engine]
    networks = {"target": network(0), "draft": network(1)}
    asked = request(temperature)
    sound = {role: wrapped(network, role, forward) for role, network in networks.items()}
    texts = {name: text_of(decoder, asked) for name, decoder in decoders(**sound, static=static).items()}

    @functools.cache
    def broken(role: str, token: int) -> ModelWrapper:
        return wrapped(after(token, networks[role]), role, forward)

    for role, name in itertools.product(networks, texts):
        in_the_text = new_token((*PROMPT, *texts[name]), after=len(PROMPT) + 3)
        for token in (PROMPT[2], in_the_text):
            decoder = decoders(**{**sound, role: broken(role, token)}, static=static)[name]
            if role == "draft" and name in ("AR", "K = 0", "n-grams"):
                assert text_of(decoder, asked) == texts[name], "it is not asked"
                continue
            message, emitted = told(decoder, asked)
            place = f"at token {emitted + 1} of the answer to p1"
            assert message == f"{role} computes no numbers (NaN or infinity) in float32, {place}"
            # It emits nothing that it should not have: the target's text up to there is that of a sound target.
            assert emitted <= texts[name].index(in_the_text) + 1 if token == in_the_text else emitted <= 1


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("engine", ENGINES)
def test_one_logit_among_many(engine: str, temperature: float, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN and infinity reach every choice; a token that is impossible reaches none."""
    forward, static = ENGINES[engine]
    target, draft = wrapped(network(0), "target"), wrapped(network(1), "draft", forward)
    asked, place = request(temperature), 1234
    expected = {name: text_of(decoder, asked) for name, decoder in decoders(target, draft, static=static).items()}
    unused = place not in {token for text in expected.values() for token in text}
    assert unused
    broken = wrapped(copy.deepcopy(network(0)), "target", forward)
    _spoil(broken, place, value, monkeypatch)
    for name, decoder in decoders(broken, draft, static=static).items():
        if value == -INF and temperature == 0:
            assert text_of(decoder, asked) == expected[name]
        elif value == -INF:
            assert place not in text_of(decoder, asked)
        else:
            assert told(decoder, asked) == (
                "target computes no numbers (NaN or infinity) in float32, at token 1 of the answer to p1", 0,
            )  # fmt: skip


def _spoil(wrapper: ModelWrapper, token: int, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass of a model gives a token this logit."""
    for owner, name in ((wrapper, "extend"), *(((wrapper.own_forward, "at"),) if wrapper.own_forward else ())):
        run = getattr(owner, name)

        def spoiled(*arguments: Any, run: Any = run, **options: Any) -> Tensor:
            logits: Tensor = run(*arguments, **options).clone()
            logits[:, token] = value
            return logits

        monkeypatch.setattr(owner, name, spoiled)


def test_logits_that_are_all_minus_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    for role, temperature in itertools.product(("target", "draft"), (0.0, 0.8)):
        models = {name: wrapped(network(seed), name) for seed, name in enumerate(("target", "draft"))}
        with monkeypatch.context() as patch:
            for name in ("extend", "extend_greedily"):
                run = getattr(models[role], name)

                def nothing(*arguments: Any, run: Any = run) -> Any:
                    found = run(*arguments)
                    if isinstance(found, tuple):
                        return found[0], torch.full_like(found[1], -INF)
                    return torch.full_like(found, -INF)

                patch.setattr(models[role], name, nothing)
            decoder = SpeculativeDecoder(models["target"], DraftModel(models["draft"]), 3)
            assert told(decoder, request(temperature))[0].startswith(f"{role} computes no numbers")


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.9), (5, 0.9)])
def test_a_filter_lets_no_nan_through(top_k: int, top_p: float) -> None:
    target, draft = wrapped(after(PROMPT[-1], network(0)), "target"), wrapped(network(1), "draft")
    for static in (False, True):
        for decoder in decoders(target, draft, static=static).values():
            assert told(decoder, request(0.8, top_k, top_p))[1] == 0


def test_what_comes_behind_a_rejected_token_is_nobodys_text() -> None:
    """The target is asked about tokens that plain decoding never shows it. Where passes keep rows apart, as in C, what
    it makes of them changes no text. (Through a mask of PyTorch's, rows see each other's NaN.)"""
    asked = request(0.0)
    draft = wrapped(network(1), "draft", "native")
    sound = SpeculativeDecoder(wrapped(network(0), "target", "native"), DraftModel(draft), 3)
    rounds = [event for event in sound.events(asked) if isinstance(event, Round)]
    text = text_of(sound, asked)
    rejected = {token for round in rounds for token in round.draft_tokens[round.num_accepted :]} - {*text, *PROMPT}
    assert rejected
    for token in sorted(rejected)[:3]:
        broken = wrapped(after(token, network(0)), "target", "native")
        for decoder in (AutoregressiveDecoder(broken), SpeculativeDecoder(broken, DraftModel(draft), 3)):
            assert text_of(decoder, asked) == text


def test_without_events_on_the_static_path() -> None:
    target, draft = (wrapped(after(PROMPT[-1], network(seed)), name) for seed, name in enumerate("td"))
    sound = wrapped(network(0), "sound")
    for decoder, named in ((StaticDecoder(target, None), "t"), (StaticDecoder(sound, DraftModel(draft), 2), "d")):
        with pytest.raises(CorrectnessError, match=f"^{named} computes no numbers"):
            decoder.tokens(request(0.0))
        # What it used serves the next one.
        assert StaticDecoder(sound, None).tokens(request(0.0)) == text_of(AutoregressiveDecoder(sound), request(0))


def other_drafters(target: ModelWrapper, draft: ModelWrapper) -> Iterator[tuple[str, Drafter]]:
    yield "target", LayerSkip(target, 1)
    yield "draft", StringMatch(draft, tiny_tokenizer(), target.vocab_size)


def test_other_drafters_that_are_models() -> None:
    """A target whose first layer breaks the keys of the second: what drafts is the part that is sound, or isn't."""
    broken = after(PROMPT[-1], network(0))
    target, draft = wrapped(broken, "target"), wrapped(broken, "draft")
    sound = wrapped(network(2), "sound")
    for named, drafter in other_drafters(target, draft):
        decoder = SpeculativeDecoder(target if named == "target" else sound, drafter, 3)
        assert told(decoder, request(0.0))[0].startswith(f"{named} computes no numbers")


def test_the_hint_knows_what_may_be_too_narrow() -> None:
    half = copy.deepcopy(network(0)).to(torch.float16)
    half.lm_head.weight.data.fill_(60000.0)
    with pytest.raises(CorrectnessError, match="float16, at its first token") as caught:
        wrapped(half, "half").check_numbers()
    assert "--dtype float32 or bfloat16" in caught.value.hint
    with pytest.raises(CorrectnessError) as caught:
        wrapped(after(0, network(0)), "whole").check_numbers()
    assert "--dtype" not in caught.value.hint and "weights" in caught.value.hint


# Whole commands


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both as directories, sound but for one token that the answers reach but the prompts don't."""
    isolate(tmp_path, monkeypatch)
    models = {"target": network(0), "draft": network(1)}
    for name, model in models.items():
        save_model_dir(tmp_path / name, model, tiny_tokenizer())
    ids = tuple(tiny_tokenizer().encode("def f(x):"))
    text = text_of(AutoregressiveDecoder(wrapped(models["target"], "t")), Request(ids, LENGTH))
    token = new_token((*ids, 0, *text), after=len(ids) + 3)
    for name, model in models.items():
        save_model_dir(tmp_path / f"broken_{name}", after(token, model), tiny_tokenizer())


TEXT = ("--prompt", "def f(x):", "--max-new-tokens", str(LENGTH), "--dtype", "float32")


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("broken", ["target", "draft"])
@pytest.mark.parametrize(
    "subcommand", [("run", *QUICK), ("verify", "--temperature", "0", "--ignore-eos")], ids=lambda words: words[0]
)
def test_a_command_says_which_model_it_is(broken: str, subcommand: tuple[str, ...]) -> None:
    named = {"--draft": "draft", "--target": "target", f"--{broken}": f"broken_{broken}"}
    outcome = command(*subcommand, *TEXT, *itertools.chain(*named.items()))
    assert outcome.code == NO_NUMBERS and outcome.out == ""
    error, hint = outcome.told
    assert error.startswith(f"broken_{broken} computes no numbers (NaN or infinity) in float32, at token ")
    assert "custom_000" in error and "weights" in hint and "Traceback" not in outcome.err


@pytest.mark.slow
@pytest.mark.usefixtures("pair")
def test_in_a_sweep_it_is_a_cell_that_failed() -> None:
    Path("prompts.txt").write_text("def f(x):")
    outcome = command(
        "sweep", "--draft", "draft", "--target", "broken_target", "--prompts", "prompts.txt", "--k", "1,2", *TEXT[2:],
        "--reps", "1", "--warmup", "0", "--deterministic", "--ignore-eos", "--json",
    )  # fmt: skip
    assert outcome.code == SOME_FAILED, outcome.err
    failures = outcome.document["failures"]
    assert len(failures) == 3
    for failure in failures:
        assert failure["reason"] == "error" and "weights" in failure["hint"]
        assert failure["message"].startswith("broken_target computes no numbers (NaN or infinity) in float32, at token")
    lines = [json.loads(line) for line in Path("results/records.jsonl").read_text().splitlines()]
    assert not [line for line in lines if line["kind"] == "generation"]
