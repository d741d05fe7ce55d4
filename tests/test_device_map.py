"""A model spread over devices: loaded by a map, run by Hugging Face's forward, token-identical; and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model  # type: ignore[import-untyped]

from command_line import QUICK, command, isolate, ok
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.errors import ResourceError, UsageError
from specprof.experiments.config import RunConfig
from specprof.models import footprint
from specprof.models.devices import map_devices
from specprof.models.footprint import bytes_by_device, is_spread
from specprof.models.loader import load_model, share_tables
from specprof.models.registry import get_pair
from specprof.models.wrapper import ModelWrapper
from tiny_models import FAMILIES, save_model_dir, tiny_tokenizer

PROMPT = (5, 6, 7, 8, 9, 5, 6, 7)
HOME = torch.device("cpu")
LENT = "cpu"
"""Main memory as a map names it: where there is another device, and to accelerate ``HOME`` is one, its weights are lent
to that for each pass, as they are to a GPU."""


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


def map_of(model: Any, first: object, second: object) -> dict[str, object]:
    """The second half of the layers on one device, all else on another."""
    base = model.base_model_prefix
    places = {name: first for name, _ in model.named_children() if name != base}
    for name, part in getattr(model, base).named_children():
        if isinstance(part, torch.nn.ModuleList):
            places |= {f"{base}.{name}.{i}": first if i < len(part) / 2 else second for i in range(len(part))}
        else:
            places[f"{base}.{name}"] = first
    return places


def hooked(model: Any, places: dict[str, Any]) -> Any:
    """With accelerate's hooks around every part, as on several devices."""
    return dispatch_model(model, places, force_hooks=True)


def saved(family: str, directory: Path) -> tuple[Any, str]:
    model = FAMILIES[family](vocab_size=4096)
    save_model_dir(directory, model, tiny_tokenizer())
    return model, str(directory)


def texts(target: ModelWrapper, draft: ModelWrapper) -> list[list[int]]:
    """By both decoders, greedy and sampled."""
    decoders = AutoregressiveDecoder(target), SpeculativeDecoder(target, DraftModel(draft), 3)
    return [
        decoder.generate(PROMPT, 16, temperature, seed=1, stop_ids=frozenset()).generated_ids
        for decoder in decoders
        for temperature in (0.0, 1.0)
    ]


@pytest.mark.parametrize("lent", [False, True], ids=["hooked", "lent"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_spread_model_generates_the_same(
    family: str, lent: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, directory = saved(family, tmp_path / "model")
    whole = ModelWrapper(*load_model(directory, "float32", "cpu"), forward="hf")
    if lent:
        loaded, _ = load_model(directory, "float32", "cpu", device_map=map_of(model, HOME, LENT))
        assert any(parameter.device.type == "meta" for parameter in loaded.parameters())
        assert "meta device" not in caplog.text, "accelerate says so, which is no news to anybody"
    else:
        loaded = hooked(load_model(directory, "float32", "cpu")[0], map_of(model, "cpu", "cpu"))
    spread = ModelWrapper(loaded)
    assert is_spread(spread.model) and not is_spread(whole.model)
    assert spread.forward_name == "hf" and spread.why_not_own is not None
    if family != "gpt_neox":  # which has no own forward anyway
        assert spread.why_not_own == "the weights are spread over devices"
        assert ModelWrapper(*load_model(directory, "float32", "cpu")).forward_name in ("native", "own")
    assert spread.device == HOME and spread.param_count == whole.param_count
    assert bytes_by_device(spread.model) == bytes_by_device(whole.model)
    assert texts(spread, whole) == texts(whole, spread) == texts(whole, whole)


def test_each_layer_keeps_its_own_part_of_the_cache(tmp_path: Path) -> None:
    """The slab of a layer is made of what that layer gets, so it lies where the layer does."""
    model, directory = saved("llama", tmp_path / "model")
    spread = ModelWrapper(*load_model(directory, "float32", "cpu", device_map=map_of(model, HOME, LENT)))
    whole = ModelWrapper(*load_model(directory, "float32", "cpu"), forward="hf")
    logits, cache = spread.forward(torch.tensor([PROMPT]))
    expected, other = whole.forward(torch.tensor([PROMPT]))
    assert cache is not None and other is not None and logits.device == spread.device
    assert torch.equal(logits, expected)
    for (keys, values), (same_keys, same_values) in zip(cache, other, strict=True):
        assert torch.equal(keys, same_keys) and torch.equal(values, same_values)
    again, longer = spread.forward(torch.tensor([[11]]), cache)
    assert longer is not None and len(cache[0][0][0, 0]) == 8 and len(longer[0][0][0, 0]) == 9
    assert torch.equal(again, whole.forward(torch.tensor([[11]]), other)[0])


def test_own_forward_and_layer_skip_are_refused(tmp_path: Path) -> None:
    model, directory = saved("llama", tmp_path / "model")
    loaded, _ = load_model(directory, "float32", "cpu", device_map=map_of(model, HOME, LENT))
    with pytest.raises(UsageError, match="spread over devices"):
        ModelWrapper(loaded, forward="own")
    with pytest.raises(UsageError, match="layer skip needs our own forward, but the weights are spread"):
        ModelWrapper(loaded).check_depth(1)


def test_tables_are_not_shared_with_a_spread_model(tmp_path: Path) -> None:
    model, directory = saved("llama", tmp_path / "model")
    whole, _ = load_model(directory, "float32", "cpu")
    spread, _ = load_model(directory, "float32", "cpu", device_map=map_of(model, HOME, LENT))
    assert share_tables(spread, whole) == share_tables(whole, spread) == 0


def test_a_map_of_one_device_changes_nothing(tmp_path: Path) -> None:
    model, directory = saved("llama", tmp_path / "model")
    for places in ({"": "cpu"}, map_of(model, "cpu", "cpu")):
        loaded, _ = load_model(directory, "float32", "cpu", device_map=places)
        assert not is_spread(loaded) and ModelWrapper(loaded).forward_name in ("native", "own")


# --- auto


def test_auto_leaves_a_model_whole_that_fits() -> None:
    whole, _ = load_model("tiny_dev/draft", "float32", "cpu")
    auto, _ = load_model("tiny_dev/draft", "float32", "cpu", device_map="auto")
    assert not is_spread(auto) and bytes_by_device(auto) == bytes_by_device(whole)
    assert ModelWrapper(auto).forward_name in ("native", "own")


def test_the_command_line_is_token_identical() -> None:
    def tokens(*arguments: str) -> dict[str, Any]:
        document = ok("run", *QUICK, "--no-save", "--json", *arguments).document
        assert document["output_matches_baseline"]["num_identical"] == 1
        return {**document["config"], "tokens": document["speculative"]["num_tokens"]}

    plain, auto = tokens(), tokens("--device-map", "auto")
    assert (plain["device_map"], auto["device_map"]) == (None, "auto")
    assert auto["tokens"] == plain["tokens"] and auto["models"] == plain["models"]


def test_load_takes_a_map() -> None:
    card = ok("load", "--pair", "tiny_dev", "--device-map", "auto", "--json").document
    assert card["memory_available_bytes"] > card["memory_needed_bytes"]
    one = ok("load", "tiny_dev/draft", "--device-map", "auto", "--json").document
    assert one["models"]["model"]["output"]


def too_large(monkeypatch: pytest.MonkeyPatch, needed: int, available: int) -> None:
    monkeypatch.setattr(footprint, "memory_needed", lambda *args, **options: needed)
    monkeypatch.setattr(footprint, "available_memory", lambda place: available)


def test_what_fits_nowhere_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    too_large(monkeypatch, 10**12, 10**9)
    with pytest.raises(ResourceError) as caught:
        load_model("tiny_dev/draft", "float32", "cpu", device_map="auto")
    assert caught.value.message == (
        "tiny_dev/draft in float32 needs 1000.0 GB, weights may take 0.9 GB of main memory together"
    )
    assert "int4" in caught.value.hint


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_what_would_be_read_from_disk_is_refused(dtype: str) -> None:
    """Which accelerate does where there is too little memory, and transformers does without a word."""
    places = map_of(load_model("tiny_dev/target", "float32", "cpu")[0], HOME, "disk")
    with pytest.raises(ResourceError) as caught:
        load_model("tiny_dev/target", dtype, "cpu", device_map=places)
    assert caught.value.message == (
        "tiny_dev/target does not fit main memory: part of it would be read from disk in every pass"
    )


def test_where_weights_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert list(map(str, map_devices("cuda", "float16"))) == ["cuda:0", "cuda:1", "cpu"]
    assert list(map(str, map_devices("cuda", "int4"))) == ["cuda:0", "cuda:1"]
    assert list(map(str, map_devices("cpu", "int4"))) == ["cpu"]


# --- what excludes it


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"device_map": "balanced"}, "there is no device map 'balanced'"),
        ({"device": "cpu"}, "--device-map auto excludes --device cpu, which is one device"),
        ({"device": "cuda:1"}, "--device-map auto excludes --device cuda:1"),
        ({"forward": "own"}, "--device-map auto excludes --forward own"),
        ({"random_weights": True}, "--device-map auto excludes --random-weights"),
    ],
)
def test_what_a_map_excludes(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunConfig(get_pair("tiny_dev"), **{"device_map": "auto", **arguments})
    assert said in caught.value.message and caught.value.hint
    RunConfig(pair=get_pair("tiny_dev"), device_map="auto", device="cuda", forward="hf")


def test_the_command_line_says_so_too() -> None:
    outcome = command("load", "tiny_dev/draft", "--device-map", "sequential")
    assert outcome.code == 2 and outcome.told == ("there is no device map 'sequential'", "device maps: auto")
    outcome = command("load", "--ollama", "--device-map", "auto")
    assert outcome.code == 2 and "--device-map does not apply" in outcome.told[0]
    with pytest.raises(UsageError, match="'balanced'"):
        load_model("tiny_dev/draft", "float32", "cpu", device_map="balanced")


# --- with a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_gpu_and_main_memory(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half of the layers lie in main memory, and are copied to the GPU in every pass."""
    model, directory = saved(family, tmp_path / "model")
    whole = ModelWrapper(*load_model(directory, "float32", "cuda"), device="cuda", forward="hf")
    with caplog.at_level(logging.WARNING):
        loaded, tokenizer = load_model(directory, "float32", "cuda", device_map=map_of(model, 0, "cpu"))
    assert "stay in main memory" in caplog.text
    assert set(bytes_by_device(loaded)) == {"cuda:0", "cpu"}
    spread = ModelWrapper(loaded, tokenizer, "cuda")
    logits, cache = spread.forward(torch.tensor([PROMPT]))
    assert logits.device.type == "cuda" and cache is not None
    assert {keys.device.type for keys, _ in cache} == {"cuda"}, "where the layers compute"
    assert texts(spread, whole) == texts(whole, spread) == texts(whole, whole)


@pytest.mark.gpu
def test_a_model_on_one_other_device_than_its_inputs(tmp_path: Path) -> None:
    """As when the first GPU is full: accelerate then puts all of it on the second."""
    _, directory = saved("llama", tmp_path / "model")
    whole = ModelWrapper(*load_model(directory, "float32", "cuda"), forward="hf")
    away = ModelWrapper(*load_model(directory, "float32", "cpu", device_map={"": 0}), "cpu")
    assert away.forward_name == "hf" and set(bytes_by_device(away.model)) == {"cuda:0"}
    assert away.forward(torch.tensor([PROMPT]))[0].device.type == "cpu"
    plain = AutoregressiveDecoder(away).generate(PROMPT, 16, stop_ids=frozenset()).generated_ids
    assert plain == AutoregressiveDecoder(whole).generate(PROMPT, 16, stop_ids=frozenset()).generated_ids


@pytest.mark.gpu
def test_two_gpus(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model, directory = saved("llama", tmp_path / "model")
    whole = ModelWrapper(*load_model(directory, "float32", "cuda:0"), forward="hf")
    spread = ModelWrapper(*load_model(directory, "float32", "cuda:0", device_map=map_of(model, 0, 1)), "cuda:0")
    logits, cache = spread.forward(torch.tensor([PROMPT]))
    assert cache is not None and logits.device == torch.device("cuda:0")
    assert [keys.device.index for keys, _ in cache] == sorted(keys.device.index for keys, _ in cache)
    assert {keys.device.index for keys, _ in cache} == {0, 1}, "each where its layer lies"
    assert texts(spread, whole) == texts(whole, spread) == texts(whole, whole)


@pytest.mark.gpu
def test_auto_spills_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU that has room for a part of the model only."""
    available: Callable[[Any], int] = footprint.available_memory
    monkeypatch.setattr(
        footprint,
        "available_memory",
        lambda place: 15_000_000 if torch.device(place).type == "cuda" else available(place),
    )
    loaded, tokenizer = load_model("tiny_dev/target", "float32", "cuda", device_map="auto")
    assert is_spread(loaded) and bytes_by_device(loaded).keys() >= {"cuda:0", "cpu"}
    monkeypatch.undo()
    whole = ModelWrapper(*load_model("tiny_dev/target", "float32", "cuda"), forward="hf")
    spread = ModelWrapper(loaded, tokenizer, "cuda")
    assert texts(spread, whole) == texts(whole, whole)
