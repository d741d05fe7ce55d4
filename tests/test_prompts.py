"""Prompts: the packaged ones, files of every kind, and what becomes of a text before it is decoded."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from specprof.data.prompts import DOMAINS, DomainStats, Prompt, PromptDataset, builtin, encode
from specprof.errors import ResourceError, UsageError
from specprof.models.checkpoint import read_config
from specprof.models.loader import load_tokenizer

PAIRS = Path(__file__).parent.parent / "specprof" / "models" / "pairs"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BOS = 0


def byte_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A real tokenizer, one token a byte, that puts a beginning-of-sequence token in front as Llama's does."""
    vocab = {"<s>": BOS} | {letter: 1 + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", chat_template=chat_template)


def raw_ids(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer().encode(text, add_special_tokens=False)
    return ids


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# The packaged prompts


def test_builtin_has_fifty_prompts_per_domain_with_ids_that_count() -> None:
    dataset = builtin()
    assert len(dataset) == 150
    assert dataset.domains == DOMAINS
    for domain in DOMAINS:
        ids = [prompt.prompt_id for prompt in dataset.get_by_domain(domain)]
        assert ids == [f"{domain}_{i:03d}" for i in range(50)]


def test_builtin_texts_differ_and_have_no_white_space_around_or_at_line_ends() -> None:
    texts = [prompt.raw_text for prompt in builtin()]
    assert len({" ".join(text.lower().split()) for text in texts}) == len(texts)
    assert all(text == text.strip() for text in texts)
    assert not [text for text in texts if re.search(r"[ \t]+$", text, re.MULTILINE)]


def test_builtin_prompts_fit_the_packaged_models_with_room_to_answer() -> None:
    for model in ("tiny_dev/target", "tiny_cross/draft"):
        context = read_config(PAIRS / model, model)["max_position_embeddings"]
        counted = builtin().with_token_counts(load_tokenizer(model))
        too_long = [prompt.prompt_id for prompt in counted if (prompt.token_count or 0) + 96 > context]
        assert too_long == []


def test_the_first_builtin_prompts_stay_what_published_figures_were_measured_on() -> None:
    for n, digest in ((12, "b0c21738b7d6f231"), (36, "0bbe1a743ed092f8")):
        record = "\0".join(f"{prompt.prompt_id}\0{prompt.raw_text}" for prompt in builtin().take(n))
        assert hashlib.sha256(record.encode()).hexdigest().startswith(digest)


def test_builtin_code_is_unfinished_code_in_several_languages() -> None:
    texts = [prompt.raw_text for prompt in builtin().get_by_domain("code")]
    assert all(80 <= len(text) <= 1500 for text in texts)
    whole = [text for text in texts if _parses(text)]  # Python up to a docstring or a statement
    assert 20 <= len(whole) < 45
    for word in ("SELECT", "#!/usr/bin/env bash", "impl ", "package ", "export function", "size_t"):
        assert any(word in text for text in texts), word


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_builtin_summarization_is_an_article_and_the_request() -> None:
    for prompt in builtin().get_by_domain("summarization"):
        article, request = prompt.raw_text.rsplit("\n\n", 1)
        assert request == "Summarize the above article:"
        assert 120 <= len(article.split()) <= 450, prompt.prompt_id


def test_builtin_conversation_is_a_request_of_moderate_length() -> None:
    for prompt in builtin().get_by_domain("conversation"):
        assert 40 <= len(prompt.raw_text) <= 700, prompt.prompt_id


def test_some_builtin_prompts_are_not_ascii() -> None:
    text = "".join(prompt.raw_text for prompt in builtin())
    assert all(letter in text for letter in ("é", "ü", "東", "🎉", "ł"))
    assert 10 <= sum(not prompt.raw_text.isascii() for prompt in builtin()) <= 30


# Choosing


def test_take_goes_round_the_domains() -> None:
    assert [prompt.prompt_id for prompt in builtin().take(5)] == [
        "code_000",
        "conversation_000",
        "summarization_000",
        "code_001",
        "conversation_001",
    ]
    dozen = builtin().take(12)
    assert [len(dozen.get_by_domain(domain)) for domain in DOMAINS] == [4, 4, 4]


def test_take_goes_on_with_the_domains_that_have_prompts_left() -> None:
    uneven = PromptDataset((Prompt("a", "x", "1"), Prompt("b", "y", "2"), Prompt("c", "y", "3"), Prompt("d", "y", "4")))
    assert [prompt.prompt_id for prompt in uneven.take(3)] == ["a", "b", "c"]
    assert len(uneven.take(99)) == 4


@pytest.mark.parametrize("n", [0, -3])
def test_take_refuses_nothing(n: int) -> None:
    with pytest.raises(UsageError, match="prompts were asked for"):
        builtin().take(n)


def test_an_unknown_domain_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'poetry'") as caught:
        builtin().get_by_domain("poetry")
    assert "code, conversation, summarization" in caught.value.hint


def test_get_all_and_iteration_agree() -> None:
    dataset = builtin()
    assert dataset.get_all() == list(dataset) == list(dataset.prompts)
    assert len(dataset) == 150


# Statistics


def test_print_stats_is_the_table_of_token_counts(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = PromptDataset(
        (
            Prompt("a", "code", "x", 34),
            Prompt("b", "code", "x", 213),
            Prompt("c", "conversation", "x", 10),
            Prompt("d", "summarization", "x", 132),
            Prompt("e", "summarization", "x", 187),
            Prompt("f", "summarization", "x", 187),
        )
    )
    expected = (
        "domain                  n    min    mean    max\n"
        "-----------------------------------------------\n"
        "code                    2     34   123.5    213\n"
        "conversation            1     10    10.0     10\n"
        "summarization           3    132   168.7    187\n"
    )
    dataset.print_stats()
    assert capsys.readouterr().out == expected
    file = io.StringIO()
    dataset.print_stats(file=file)
    assert file.getvalue() == expected


def test_the_table_can_say_where_prompts_came_from() -> None:
    dataset = PromptDataset((Prompt("a", "code", "x", 34), Prompt("b", "conversation", "x", 10)))
    assert dataset.table({"code": "built-in", "conversation": "somebody/something"}) == (
        "domain                  n    min    mean    max  source\n"
        "-------------------------------------------------------------------\n"
        "code                    1     34    34.0     34  built-in\n"
        "conversation            1     10    10.0     10  somebody/something"
    )


def test_stats_are_numbers_or_nothing() -> None:
    prompts = (Prompt("a", "code", "x", 34), Prompt("b", "code", "x", 35), Prompt("c", "chat", "x"))
    assert PromptDataset(prompts).stats() == (
        DomainStats("code", 2, 34, 34.5, 35),
        DomainStats("chat", 1, None, None, None),
    )


def test_print_stats_shows_a_dash_for_counts_nobody_made() -> None:
    file = io.StringIO()
    PromptDataset((Prompt("a", "code", "x"), Prompt("b", "code", "x", 5))).print_stats(file)
    assert file.getvalue().splitlines()[-1] == "code                    2      -       -      -"


def test_token_counts_are_those_of_the_encoded_prompt() -> None:
    dataset = PromptDataset((Prompt("a", "code", "abc\n"), Prompt("b", "conversation", "hi")))
    counted = dataset.with_token_counts(byte_tokenizer(CHAT_TEMPLATE))
    assert [prompt.token_count for prompt in counted] == [1 + 4, 1 + len("[user]hi[assistant]")]
    plain = dataset.with_token_counts(byte_tokenizer(CHAT_TEMPLATE), chat_template="off")
    assert [prompt.token_count for prompt in plain] == [1 + 4, 1 + 2]


# Encoding


@pytest.mark.parametrize("domain", ["code", "custom", "legal"])
def test_code_and_own_domains_are_encoded_as_they_stand(domain: str) -> None:
    prompt = Prompt("a", domain, "def f():")
    assert encode(prompt, byte_tokenizer(CHAT_TEMPLATE)) == [BOS, *raw_ids("def f():")]


@pytest.mark.parametrize("domain", ["conversation", "summarization"])
def test_chat_domains_go_through_the_template_with_one_bos(domain: str) -> None:
    ids = encode(Prompt("a", domain, "hi"), byte_tokenizer(CHAT_TEMPLATE))
    assert ids == [BOS, *raw_ids("[user]hi[assistant]")]


def test_the_template_can_be_left_out_and_need_not_exist() -> None:
    prompt = Prompt("a", "conversation", "hi")
    expected = [BOS, *raw_ids("hi")]
    assert encode(prompt, byte_tokenizer(CHAT_TEMPLATE), chat_template="off") == expected
    assert encode(prompt, byte_tokenizer()) == expected


@pytest.mark.parametrize("text", ["x = 1\n", "x = 1 ", "x = 1\r\n", "  x = 1 \n\n    ", "\n\nx = 1\t"])
def test_white_space_around_a_prompt_is_encoded(text: str) -> None:
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    assert encode(Prompt("a", "code", text), tokenizer) == [BOS, *raw_ids(text)]
    assert encode(Prompt("a", "conversation", text), tokenizer) == [BOS, *raw_ids(f"[user]{text}[assistant]")]
    assert encode(Prompt("a", "conversation", text), tokenizer, chat_template="off") == [BOS, *raw_ids(text)]


@pytest.mark.parametrize("model", ["tiny_dev/target", "tiny_cross/draft"])
def test_the_packaged_tokenizers_keep_white_space(model: str) -> None:
    tokenizer = load_tokenizer(model)
    texts = ["def f(x):", "def f(x):\n", "def f(x): ", "def f(x):\n    "]
    encoded = [encode(Prompt("a", "code", text), tokenizer) for text in texts]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded] == texts


@pytest.mark.parametrize("text", ["", " \n"])
@pytest.mark.parametrize("domain", ["code", "conversation"])
def test_a_prompt_without_text_is_refused_when_encoded(domain: str, text: str) -> None:
    with pytest.raises(UsageError, match="'a' holds no text"):
        encode(Prompt("a", domain, text), byte_tokenizer(CHAT_TEMPLATE))


def test_a_template_that_fails_is_the_users_to_switch_off() -> None:
    tokenizer = byte_tokenizer("{{ raise_exception('a system message is needed') }}")
    with pytest.raises(UsageError, match="a system message is needed") as caught:
        encode(Prompt("a", "conversation", "hi"), tokenizer)
    assert "--chat-template off" in caught.value.hint


# Saving and loading


def test_a_saved_file_loads_as_the_same_prompts(tmp_path: Path) -> None:
    dataset = builtin().with_token_counts(byte_tokenizer())
    path = tmp_path / "prompts.json"
    dataset.save(path)
    assert PromptDataset.load(path) == dataset
    record = json.loads(path.read_text(encoding="utf-8"))[0]
    assert list(record) == ["prompt_id", "domain", "raw_text", "token_count"]
    assert [file.name for file in tmp_path.iterdir()] == ["prompts.json"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=5))
def test_any_text_survives_saving(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("saved") / "prompts.json"
    dataset = PromptDataset(tuple(Prompt(f"p{i}", "custom", text) for i, text in enumerate(texts)))
    dataset.save(path)
    assert PromptDataset.load(path) == dataset


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "prompts.json", "the old file")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(ResourceError, match="No space left on device"):
        builtin().save(path)
    assert path.read_text() == "the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_saving_where_there_is_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No such file or directory"):
        builtin().save(tmp_path / "missing" / "prompts.json")


def test_saving_to_a_device_writes_to_it() -> None:
    builtin().save("/dev/null")
    assert Path("/dev/null").is_char_device()


def test_json_may_hold_texts_and_objects_of_several_kinds(tmp_path: Path) -> None:
    items = ["one", {"prompt": "two"}, {"text": "three", "domain": "code"}, {"raw_text": "four", "prompt_id": "mine"}]
    path = written(tmp_path, "own.json", json.dumps(items))
    assert PromptDataset.load(path).get_all() == [
        Prompt("custom_000", "custom", "one"),
        Prompt("custom_001", "custom", "two"),
        Prompt("code_000", "code", "three"),
        Prompt("mine", "custom", "four"),
    ]


def test_json_lines_may_have_blank_lines_and_line_separators_in_texts(tmp_path: Path) -> None:
    path = written(tmp_path, "own.jsonl", '{"prompt": "a\u2028b"}\r\n\n"c"\n')
    assert [prompt.raw_text for prompt in PromptDataset.load(path)] == ["a\u2028b", "c"]


def test_plain_text_is_one_prompt(tmp_path: Path) -> None:
    path = written(tmp_path, "own.txt", 'first line\n["second"]\n')
    assert PromptDataset.load(path).get_all() == [Prompt("custom_000", "custom", 'first line\n["second"]')]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("def f():", "def f():"),
        ("def f():\n", "def f():"),
        ("def f():\r\n", "def f():"),
        ("def f():\n\n", "def f():\n"),
        ("def f():\r\n\r\n", "def f():\r\n"),
        ("\n\tdef f():\n    \n", "\n\tdef f():\n    "),
        ("def f(): ", "def f(): "),
        ("def f():\n    ", "def f():\n    "),
        ("def f():\r", "def f():\r"),
    ],
)
def test_of_plain_text_one_line_end_is_the_files(tmp_path: Path, content: str, text: str) -> None:
    from_file = PromptDataset.load(written(tmp_path, "own.txt", content))
    assert from_file.get_all() == PromptDataset.read(io.BytesIO(content.encode())).get_all()
    assert [prompt.raw_text for prompt in from_file] == [text]


@pytest.mark.parametrize("text", ["def f():\n", "def f():\r\n", "def f():\n\n", " x \t"])
def test_json_texts_keep_their_white_space(tmp_path: Path, text: str) -> None:
    item = json.dumps({"text": text})
    for name, content in (("own.json", f"[{item}]\n"), ("own.jsonl", f"{item}\n")):
        from_file = PromptDataset.load(written(tmp_path, name, content))
        assert from_file.get_all() == PromptDataset.read(io.BytesIO(content.encode())).get_all()
        assert [prompt.raw_text for prompt in from_file] == [text]


@pytest.mark.parametrize("name", ["own.json", "own.txt"])
def test_a_byte_order_mark_is_not_part_of_the_prompt(tmp_path: Path, name: str) -> None:
    content = '["x"]' if name.endswith("json") else "x"
    (prompt,) = PromptDataset.load(written(tmp_path, name, b"\xef\xbb\xbf" + content.encode()))
    assert prompt.raw_text == "x"


BAD_FILES = {
    "empty": ("own.json", b"", "own.json is empty"),
    "white space only": ("own.txt", b" \n\t\n", "own.txt is empty"),
    "not UTF-8": ("own.txt", b"caf\xe9 au lait", r"not UTF-8: byte 3 \(0xe9\)"),
    "not UTF-8 after a mark": ("own.txt", b"\xef\xbb\xbfa\xff", r"not UTF-8: byte 4 \(0xff\)"),
    "no prompt": ("own.json", b"[]", "there is no prompt"),
    "torn JSON": ("own.json", b'["a",\n "b', "not valid JSON at line 2, column 2"),
    "torn JSON line": ("own.jsonl", b'"a"\n{"text": }\n', "line 2: not valid JSON at column 10"),
    "JSON too deep": ("own.json", b"[" * 100_000, "JSON that can't be read"),
    "number too long": ("own.json", b"[" + b"9" * 5000 + b"]", "JSON that can't be read"),
    "an object": ("own.json", b'{"prompts": ["a"]}', "the top of the file is an object, not a list"),
    "a number among the prompts": ("own.json", b'["a", 3]', "item 2: a prompt can't be a number"),
    "null among the prompts": ("own.jsonl", b'"a"\n\nnull', "line 3: a prompt can't be null"),
    "no text": ("own.json", b'[{"prompt_id": "a"}]', "item 1: none of the keys raw_text, prompt, text is there"),
    "text of a wrong type": ("own.json", b'[{"text": ["a"]}]', "item 1: text is a list, not a text"),
    "text that is null": ("own.json", b'[{"raw_text": null}]', "item 1: raw_text is null, not a text"),
    "id of a wrong type": ("own.json", b'[{"text": "a", "prompt_id": 7}]', "prompt_id is a number"),
    "domain of a wrong type": ("own.json", b'[{"text": "a", "domain": true}]', "domain is true or false"),
    "blank domain": ("own.json", b'[{"text": "a", "domain": " "}]', "domain ' ' is blank"),
    "escape sequence in an id": ("own.json", b'[{"text": "a", "prompt_id": "\\u001b[31m"}]', "not printable"),
    "token count of a wrong type": ("own.json", b'[{"text": "a", "token_count": true}]', "token_count is not a whole"),
    "negative token count": ("own.json", b'[{"text": "a", "token_count": -1}]', "token_count is not a whole"),
    "blank prompt": ("own.json", b'["a", " \\n"]', "item 2: the prompt holds nothing but white space"),
    "half a character": ("own.json", b'["a\\ud83d"]', r"item 1: character 1 \(U\+D83D\) is half of a surrogate pair"),
    "an id twice": ("own.json", b'[{"text": "a", "prompt_id": "x"}, {"text": "b", "prompt_id": "x"}]', "'x' occurs 2"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_holds_no_prompts_is_refused_with_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(UsageError, match=message) as caught:
        PromptDataset.load(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path}/none.json does not exist")):
        PromptDataset.load(tmp_path / "none.json")
    with pytest.raises(UsageError, match="is a directory"):
        PromptDataset.load(tmp_path)


def test_texts_become_custom_prompts() -> None:
    dataset = PromptDataset.from_texts(["hello", "hello\n"])
    assert dataset.get_all() == [Prompt("custom_000", "custom", "hello"), Prompt("custom_001", "custom", "hello\n")]
    with pytest.raises(UsageError, match="nothing but white space"):
        PromptDataset.from_texts(["hello", "\n \n"])
    with pytest.raises(UsageError, match="there is no prompt"):
        PromptDataset.from_texts([])


def test_a_stream_is_one_prompt() -> None:
    stream = io.BytesIO("\ufefffirst\nsecond é\n".encode())
    assert PromptDataset.read(stream).get_all() == [Prompt("custom_000", "custom", "first\nsecond é")]


@pytest.mark.parametrize("raw", ["[1, 2, 3]", "{x: 1}", '"quoted"', "[see below] and go on"])
def test_a_stream_that_looks_little_like_json_is_text(raw: str) -> None:
    assert [prompt.raw_text for prompt in PromptDataset.read(io.BytesIO(raw.encode()))] == [raw]


@pytest.mark.parametrize("raw", ['["a", {"text": "b"}]', '\n{"text": "a"}\n{"text": "b"}\n'])
def test_a_stream_may_be_json_or_json_lines(raw: str) -> None:
    assert [prompt.raw_text for prompt in PromptDataset.read(io.BytesIO(raw.encode()))] == ["a", "b"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "standard input is empty"),
        (b"a\xff", "standard input is not UTF-8: byte 1"),
        (b'["a", "b', "standard input: not valid JSON at line 1, column 7"),
        (b'{"text": "a"}\n{"tex', "standard input: line 2: not valid JSON at column 2"),
    ],
)
def test_a_stream_without_a_prompt_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PromptDataset.read(io.BytesIO(raw))
