"""The pairs by name: the registered six, and the user's own from TOML."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from specprof.errors import UsageError
from specprof.models.registry import REGISTRY, ModelPair, config_paths, get_pair, list_pairs, user_pairs


@pytest.fixture(autouse=True)
def _no_configuration_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write_user_config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config" / "specprof" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_registered_pairs_are_those_of_the_documents() -> None:
    assert list_pairs() == ["gpt2_dev", "tinyllama_llama3", "phi3_llama3", "llama3_self", "tiny_dev", "tiny_cross"]
    llama = "meta-llama/Meta-Llama-3-8B-Instruct"
    expected = {
        "gpt2_dev": ("gpt2", "gpt2-xl", "float16", "float16"),
        "tinyllama_llama3": ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", llama, "float16", "float16"),
        "phi3_llama3": ("microsoft/Phi-3-mini-4k-instruct", llama, "float16", "float16"),
        "llama3_self": (llama, llama, "int4", "float16"),
        "tiny_dev": ("tiny_dev/draft", "tiny_dev/target", "float16", "float16"),
        "tiny_cross": ("tiny_cross/draft", "tiny_dev/target", "float16", "float16"),
    }
    for name, (draft, target, draft_dtype, target_dtype) in expected.items():
        pair = get_pair(name)
        assert pair is REGISTRY[name]
        assert (pair.name, pair.draft_model_id, pair.target_model_id) == (name, draft, target)
        assert (pair.draft_dtype, pair.target_dtype) == (draft_dtype, target_dtype)
        assert pair.notes


def test_a_pair_can_not_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_pair("gpt2_dev").draft_dtype = "int4"  # type: ignore[misc]


def test_unknown_pair_lists_the_names_and_the_closest() -> None:
    with pytest.raises(UsageError, match="no pair named 'gpt2_dve'") as caught:
        get_pair("gpt2_dve")
    assert caught.value.exit_code == 2
    assert "did you mean gpt2_dev?" in caught.value.hint
    assert all(name in caught.value.hint for name in list_pairs())
    with pytest.raises(UsageError) as caught:
        get_pair("zzzzzzzz")
    assert "did you mean" not in caught.value.hint


def test_user_pair_from_the_user_configuration(tmp_path: Path) -> None:
    write_user_config(
        tmp_path,
        '[pairs.mine]\ndraft = "Qwen/Qwen2.5-0.5B"\ntarget = "Qwen/Qwen2.5-7B"\n'
        'draft_dtype = "int4"\ntarget_dtype = "bfloat16"\nnotes = "ours"\n',
    )
    assert get_pair("mine") == ModelPair("mine", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B", "int4", "bfloat16", "ours")
    with pytest.raises(UsageError) as caught:
        get_pair("mime")
    assert "did you mean mine?" in caught.value.hint


def test_project_configuration_wins_over_the_users(tmp_path: Path) -> None:
    write_user_config(tmp_path, '[pairs.a]\ndraft = "u/d"\ntarget = "u/t"\n[pairs.b]\ndraft = "u/d"\ntarget = "u/t"\n')
    Path("specprof.toml").write_text('[pairs.a]\ndraft = "p/d"\ntarget = "p/t"\n', encoding="utf-8")
    assert {name: pair.draft_model_id for name, pair in user_pairs().items()} == {"a": "p/d", "b": "u/d"}
    assert get_pair("a").target_dtype == "float16"


def test_relative_directories_are_relative_to_the_file(tmp_path: Path) -> None:
    path = write_user_config(
        tmp_path, '[pairs.local]\ndraft = "./models/d"\ntarget = "models/t"\n[pairs.hub]\ndraft = "a/b"\ntarget = "c"\n'
    )
    (path.parent / "models" / "t").mkdir(parents=True)
    pairs = user_pairs([path])
    assert pairs["local"].draft_model_id == str(path.parent / "models" / "d")
    assert pairs["local"].target_model_id == str(path.parent / "models" / "t")
    assert (pairs["hub"].draft_model_id, pairs["hub"].target_model_id) == ("a/b", "c")


def test_the_home_of_nobody_is_kept_as_it_is_written(tmp_path: Path) -> None:
    """Whoever loads the pair is told that there is no such directory; the other pairs of the file can be used."""
    path = tmp_path / "pairs.toml"
    path.write_text('[pairs.a]\ndraft = "~nobody-of-that-name/d"\ntarget = "gpt2"\n')
    pair = user_pairs([path])["a"]
    assert pair.draft_model_id.endswith("~nobody-of-that-name/d") and pair.target_model_id == "gpt2"


def test_without_files_there_are_no_user_pairs() -> None:
    assert user_pairs() == {}


def test_relative_xdg_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert config_paths()[1] == Path("~/.config/specprof/config.toml").expanduser()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[pairs.a]\ndraft = "x"\ntarget = \n', "line 3"),
        ('[pairs.a]\ndraft = "x"\ntarget = "y"\ndtype = "int4"\n', "unknown key 'dtype'"),
        ('[pairs.a]\ndraft = "x"\ntarget = 7\n', "target is int, not a string"),
        ('[pairs.a]\ndraft = "x"\n', "has no target"),
        ('[pairs.a]\ndraft = ""\ntarget = "y"\n', "has no draft"),
        ('[pairs.gpt2_dev]\ndraft = "x"\ntarget = "y"\n', "shadows the registered pair gpt2_dev"),
        ('[pairs]\na = "x"\n', "not a table"),
        ("pairs = 3\n", "not a table"),
    ],
)
def test_a_configuration_that_can_not_be_meant(tmp_path: Path, text: str, said: str) -> None:
    path = write_user_config(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        get_pair("a")
    assert said in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_configuration_that_is_not_text(tmp_path: Path) -> None:
    path = write_user_config(tmp_path, "")
    path.write_bytes(b"[pairs.a]\ndraft = '\xff'\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        user_pairs()
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match="can't read"):
        user_pairs()


def test_registered_pairs_need_no_readable_configuration(tmp_path: Path) -> None:
    write_user_config(tmp_path, "not toml")
    assert get_pair("tiny_dev").draft_model_id == "tiny_dev/draft"
