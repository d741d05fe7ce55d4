"""Prompts from data sets: the real readers on local copies of each schema, and a small server in the hub's place."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest

from dataset_hub import (
    ALPACA,
    CNN,
    HUMANEVAL,
    Hub,
    Rows,
    alpaca_rows,
    cnn_rows,
    humaneval_rows,
    parquet,
    repository,
    served,
)
from specprof.data import sources
from specprof.data.prompts import DOMAINS, builtin
from specprof.data.sources import SOURCES, Origin, build, cut, read_texts
from specprof.models.loader import load_tokenizer, quiet_transformers

pytestmark = pytest.mark.slow  # processes that import the datasets library

BY_DOMAIN = {source.domain: source for source in SOURCES}
REQUEST = "\n\nSummarize the above article:"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("tiny_dev/target")


def num_tokens(tokenizer: Any, text: str) -> int:
    with quiet_transformers():
        return len(tokenizer.encode(text, add_special_tokens=False))


# One data set, from a local file in its schema


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Any, ...]]]:
    """Let data sets come from local files of these rows; gives the list of what was asked for."""
    load_dataset = datasets.load_dataset

    def serve(rows: Rows, suffix: str = "parquet") -> list[tuple[Any, ...]]:
        file = tmp_path / f"rows.{suffix}"
        file.write_bytes(parquet(rows) if suffix == "parquet" else "\n".join(map(json.dumps, rows)).encode())
        asked = []

        def load_local(name: str, config: str | None = None, *, split: str, streaming: bool) -> Any:
            asked.append((name, config, split, streaming))
            return load_dataset(suffix, data_files=str(file), split="train", streaming=True)

        monkeypatch.setattr(datasets, "load_dataset", load_local)
        return asked

    return serve


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_code_is_the_prompt_of_a_humaneval_row(local: Callable[..., list[Any]], suffix: str) -> None:
    asked = local(humaneval_rows(), suffix)
    texts = read_texts(BY_DOMAIN["code"], 50, seed=0)
    assert asked == [("openai/openai_humaneval", None, "test", True)]
    assert len(set(texts)) == 50
    assert set(texts) <= {row["prompt"] for row in humaneval_rows()}
    assert all(text.startswith("\n\n") and text.endswith('"""\n') for text in texts), "as they are"


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_conversation_is_the_instruction_and_the_input_if_there_is_one(
    local: Callable[..., list[Any]], suffix: str
) -> None:
    asked = local(alpaca_rows(60), suffix)
    texts = read_texts(BY_DOMAIN["conversation"], 60, seed=0)
    assert asked == [("tatsu-lab/alpaca", None, "train", True)]
    assert "Write about number 4." in texts
    assert "Write about number 5.\n\nThe number is 5.\nIt is a number." in texts
    assert sum("\n" in text for text in texts) == 30


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_summarization_reads_articles(local: Callable[..., list[Any]], suffix: str) -> None:
    asked = local(cnn_rows(), suffix)
    texts = read_texts(BY_DOMAIN["summarization"], 50, seed=0)
    assert asked == [("abisee/cnn_dailymail", "3.0.0", "test", True)]
    assert set(texts) <= {row["article"] for row in cnn_rows()}


def test_the_seed_chooses_among_the_first_thousand_rows(local: Callable[..., list[Any]]) -> None:
    local(alpaca_rows(1500))
    chosen = [read_texts(BY_DOMAIN["conversation"], 50, seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]
    numbers = [int(text.split(".")[0].split()[-1]) for text in chosen[0] + chosen[2]]
    assert 500 < max(numbers) < 1000
    assert read_texts(BY_DOMAIN["conversation"], 5, 0) == chosen[0][:5]  # the tiny set begins the full one


def test_blank_and_repeated_texts_are_left_out(local: Callable[..., list[Any]]) -> None:
    rows = humaneval_rows(52)
    rows[3]["prompt"] = " \n"
    rows[4]["prompt"] = rows[5]["prompt"]
    local(rows)
    assert len(set(read_texts(BY_DOMAIN["code"], 50, 0))) == 50
    with pytest.raises(sources._Unusable, match="it has 50 usable rows, 51 are needed"):
        read_texts(BY_DOMAIN["code"], 51, 0)


@pytest.mark.parametrize(
    ("domain", "rows", "said"),
    [
        ("code", [{"question": "x"}] * 60, "no text under 'prompt'"),
        ("code", [{"prompt": 3}] * 60, "no text under 'prompt'"),
        ("conversation", [{"instruction": "x"}] * 60, "no text under 'input'"),
        ("conversation", [{"instruction": None, "input": ""}] * 60, "no text under 'instruction'"),
        ("summarization", [{"article": ["x"]}] * 60, "no text under 'article'"),
    ],
)
def test_another_schema_is_noticed(local: Callable[..., list[Any]], domain: str, rows: Rows, said: str) -> None:
    local(rows)
    with pytest.raises(sources._Unusable, match=said):
        read_texts(BY_DOMAIN[domain], 50, 0)


def test_a_file_that_is_no_parquet_is_a_reason(local: Callable[..., list[Any]], tmp_path: Path) -> None:
    local(humaneval_rows())
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(sources._Unusable, match="ArrowInvalid"):
        read_texts(BY_DOMAIN["code"], 50, 0)


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.missing_library() is None
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    missing = sources.missing_library()
    assert missing is not None and "pip install 'specprof[datasets]'" in missing


# Articles


@pytest.mark.parametrize("limit", [1, 7, 100, 512])
def test_articles_are_cut_to_whole_words_within_the_limit(tokenizer: Any, limit: int) -> None:
    for row in cnn_rows(30):
        article = row["article"]
        text = cut(article, tokenizer, limit)
        if text == article:
            assert num_tokens(tokenizer, article) <= limit
            continue
        assert article.startswith(text) and article[len(text)].isspace()
        longer = text + article[len(text) :].split(" ", 2)[0] + " " + article[len(text) :].split(" ", 2)[1]
        assert num_tokens(tokenizer, longer) > limit
        assert num_tokens(tokenizer, text) <= limit or " " not in text


# All three, from a server in the hub's place


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    with served() as (address, hub):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_HUB_OFFLINE")
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        yield hub


def test_all_domains_from_their_data_sets(hub: type[Hub], tokenizer: Any) -> None:
    dataset, origins = build(tokenizer, seed=3)
    assert origins == (
        Origin("code", HUMANEVAL, None),
        Origin("conversation", ALPACA, None),
        Origin("summarization", CNN, None),
    )
    assert [prompt.prompt_id for prompt in dataset] == [f"{domain}_{i:03d}" for domain in DOMAINS for i in range(50)]
    articles = [prompt.raw_text for prompt in dataset.get_by_domain("summarization")]
    assert all(text.endswith(REQUEST) for text in articles)
    lengths = [num_tokens(tokenizer, text.removesuffix(REQUEST)) for text in articles]
    assert max(lengths) <= 512 and sum(length > 500 for length in lengths) > 10
    assert any("naïve" in text for text in articles)
    assert {prompt.raw_text for prompt in dataset}.isdisjoint(prompt.raw_text for prompt in builtin())


@pytest.mark.parametrize("status", [404, 500])
def test_each_domain_falls_back_by_itself(hub: type[Hub], tokenizer: Any, status: int) -> None:
    hub.repositories[HUMANEVAL] = repository("openai_humaneval", "test", humaneval_rows(49))
    hub.repositories[ALPACA] = status
    start = time.perf_counter()
    dataset, origins = build(tokenizer)
    assert time.perf_counter() - start < 8  # datasets alone would try a server error again and again for 23 s
    assert origins[0] == Origin("code", "built-in", "it has 49 usable rows, 50 are needed")
    assert origins[1] == Origin("conversation", "built-in", f"the hub answers {status} when asked for {ALPACA}")
    assert origins[2] == Origin("summarization", CNN, None)
    assert dataset.get_by_domain("code") == builtin().get_by_domain("code")
    assert dataset.get_by_domain("conversation") == builtin().get_by_domain("conversation")
    assert [len(dataset.get_by_domain(domain)) for domain in DOMAINS] == [50, 50, 50]


def test_a_data_set_that_hangs_is_given_up(hub: type[Hub], tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[ALPACA] = None
    monkeypatch.setattr(sources, "_PATIENCE_SECONDS", 4.5)  # less than a reader waits for an answer
    _, origins = build(tokenizer, per_domain=5)
    assert [origin.source for origin in origins] == [HUMANEVAL, "built-in", CNN]
    assert origins[1].reason == "it was not read within 4.5 s"


def test_what_is_known_to_be_unreachable_is_not_asked(tokenizer: Any) -> None:
    start = time.perf_counter()
    dataset, origins = build(tokenizer, unavailable="the sea is rough", per_domain=5)
    assert time.perf_counter() - start < 1
    assert list(dataset) == [prompt for domain in DOMAINS for prompt in builtin().get_by_domain(domain)[:5]]
    assert {(origin.source, origin.reason) for origin in origins} == {("built-in", "the sea is rough")}


def test_a_reader_that_dies_is_a_reason(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    _, origins = build(tokenizer, per_domain=5)
    assert {origin.reason for origin in origins} == {"reading it ended with code 1 (no message)"}
