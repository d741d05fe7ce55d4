"""The page in a real browser: nothing in it runs, nothing is reported, both themes, narrow windows, print."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import browser
from sample_report import HOSTILE, sample
from specprof.reports import html
from specprof.reports.palette import COLORS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.find() is None, reason=f"needs one of {', '.join(browser.NAMES)}"),
]

EVERYTHING = " ".join(HOSTILE.values())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html.render(sample()), "utf-8")
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "hostile.html"
    path.write_text(html.render(sample(lambda text: f"{text} {EVERYTHING}")), "utf-8")
    return path


def elements(text: str) -> list[str]:
    return re.findall(r"<([a-zA-Z][a-zA-Z0-9]*)", re.sub(r"<(style|script)\b.*?</\1>", r"<\1>", text, flags=re.DOTALL))


def test_nothing_of_hostile_texts_runs_or_becomes_an_element(hostile: Path) -> None:
    document, console = browser.dump_dom(hostile)
    assert console == []
    assert elements(document) == elements(hostile.read_text("utf-8"))
    title = re.search("<title>(.*?)</title>", document, re.DOTALL)
    assert title is not None and title[1].startswith("tiny_dev: speculative")
    assert "owned</body>" not in document


def test_the_browser_would_run_it_and_would_tell(tmp_path: Path) -> None:
    path = tmp_path / "owned.html"
    path.write_text(f"<!doctype html><title>mine</title><p>{HOSTILE['script']}", "utf-8")
    document, _ = browser.dump_dom(path)
    assert "<title>owned</title>" in document and "owned</body>" in document

    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    path.write_text(f"<!doctype html>{policy}<title>mine</title><p>{HOSTILE['script']}", "utf-8")
    document, console = browser.dump_dom(path)
    assert "<title>mine</title>" in document and "Content Security Policy" in "".join(console)


def test_the_page_follows_the_theme_its_reader_prefers(page: Path, tmp_path: Path) -> None:
    from PIL import Image

    for dark, ground in enumerate(COLORS["ground"]):
        picture = tmp_path / f"{dark}.png"
        browser.screenshot(page, picture, width=800, height=1000, dark=bool(dark))
        with Image.open(picture) as image:
            assert image.size == (800, 1000)
            counted = image.convert("RGB").getcolors(2**24)
            assert counted is not None
            commonest = max(counted)[1]
            assert isinstance(commonest, tuple)
            assert f"#{bytes(commonest).hex()}" == ground, "the style sheet is applied"


@pytest.mark.parametrize("name", ["page", "hostile"])
def test_a_narrow_window_does_not_scroll_sideways(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    # In a frame, since a window may have a least width; with a script, which the page's policy would stop.
    text = request.getfixturevalue(name).read_text("utf-8")
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", text)
    measure = "<script>parent.postMessage(`${innerWidth}, ${document.documentElement.scrollWidth}`, '*')</script>"
    (tmp_path / "framed.html").write_text(without_policy.replace("</body>", f"{measure}</body>"), "utf-8")
    frame = tmp_path / "frame.html"
    listen = "<script>onmessage = ({data}) => document.title = data</script>"
    frame.write_text(f"<!doctype html>{listen}<iframe src=framed.html width=360 height=900 style='border: 0'>", "utf-8")
    document, _ = browser.dump_dom(frame)
    assert "<title>360, 360</title>" in document


def test_the_page_prints_with_the_data_under_its_figures(page: Path, tmp_path: Path) -> None:
    document = tmp_path / "report.pdf"
    browser.pdf(page, document)
    assert document.read_bytes().startswith(b"%PDF")
    if shutil.which("pdftotext") is None:
        pytest.skip("needs pdftotext to read what was printed")
    text = subprocess.run(["pdftotext", document, "-"], capture_output=True, text=True, check=True).stdout
    assert "1.188" in text and "Speculation is faster" in text
    assert "Skip to the report" not in text
