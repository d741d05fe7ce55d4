"""A file is the old one or the new one, never a part."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from specprof.files import write_whole


def write(path: Path, text: str) -> None:
    write_whole(path, lambda draft: draft.write_text(text))


def test_a_file_is_written_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    for text in ("first", "second", ""):
        write(path, text)
        assert path.read_text() == text and os.listdir(tmp_path) == ["a.html"]


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("old")

    def half(draft: Path) -> None:
        assert draft.parent == tmp_path and draft != path, "where it can be moved at once"
        draft.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, half)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.html"]
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "b.html", half)
    assert os.listdir(tmp_path) == ["a.html"]


def test_a_file_that_is_new_is_as_the_user_wants_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "new", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_file_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o600)
    write(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_goes_on_pointing(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "to nothing").symlink_to("not yet")
    write(tmp_path / "link", "new")
    write(tmp_path / "to nothing", "there")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "to nothing").is_symlink() and (tmp_path / "not yet").read_text() == "there"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write(path, "through")
    reader.join(10)
    assert read == ["through"] and stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_is_written_to() -> None:
    write(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["none/a", "file/a", ""])
def test_where_no_file_can_be_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write(tmp_path / name, "x")
    assert os.listdir(tmp_path) == ["file"]


def test_the_longest_name_there_can_be(tmp_path: Path) -> None:
    for name in ("x" * 250 + ".html", "\N{GRINNING FACE}" * 62 + ".html"):
        write(tmp_path / name, "x")
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()
    (tmp_path / name).touch()
    with pytest.raises(OSError):
        write(tmp_path / ("x" * 300), "x")
    assert os.listdir(tmp_path) == [name]
