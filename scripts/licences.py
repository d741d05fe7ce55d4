"""The licences of everything that specprof needs to run, from the metadata of what is installed.

    python scripts/licences.py            # writes docs/licences.md
    python scripts/licences.py --check    # fails if it would write something else

Run it in an environment that has the versions of constraints.txt, as `make install` makes it.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import tomllib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
EXTRAS = ("datasets", "ollama", "ray", "energy", "analysis")
"""Those that `specprof[all]` brings."""

_COPYLEFT = re.compile(r"\b[AL]?GPL|\bMPL|\bEPL|\bCDDL|Mozilla|General Public", re.IGNORECASE)
_NAMED = re.compile(r"Apache|BSD|MIT|ISC|PSF|GPL|MPL")
_SHORT = {"Apache Software License": "Apache-2.0", "MIT License": "MIT", "BSD License": "BSD"}
_UNKNOWN = "-"
_HOME_PAGES = ("homepage", "home", "home-page", "repository", "source", "source code", "code", "github")

_HEAD = """\
# Licences

specprof is under the MIT licence (`LICENSE`). What it needs to run is listed here with the versions it is tested with
(`constraints.txt`), as each package's own metadata has it; `python scripts/licences.py` writes this page. None of it is
part of the wheel: pip fetches each from its authors.

The weights and prompts in the wheel: what they were trained on, and under which licences that stands, is in
[tiny_dev's model card](../specprof/models/pairs/tiny_dev/MODEL_CARD.md) and
[tiny_cross's](../specprof/models/pairs/tiny_cross/MODEL_CARD.md).

PyTorch's usual build for Linux also brings Triton (MIT), `cuda-bindings` and `cuda-pathfinder` (Apache-2.0), and
NVIDIA's CUDA libraries (packages named `nvidia-*`), which are proprietary, under NVIDIA's own terms. Its builds for the
CPU, which are not on the package index, bring none of these.
"""


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    version: str
    licence: str
    page: str
    extras: frozenset[str]
    """Which of specprof's bring it; empty: it is always needed."""


def needed() -> list[Package]:
    """What specprof needs, and what that needs, by name."""
    always = _reached(("",))
    found = {name: frozenset[str]() for name in always}
    for extra in EXTRAS:
        for name in _reached(("", extra)) - always:
            found[name] = found.get(name, frozenset()) | {extra}
    return [_package(name, found[name]) for name in sorted(found)]


def _reached(extras: tuple[str, ...]) -> set[str]:
    """Canonical names of what is needed with these extras, specprof itself left out."""
    waiting = deque([("specprof", extras)])
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.popleft()
        for requirement in _requirements(name, wanted):
            step = (str(canonicalize_name(requirement.name)), ("", *sorted(requirement.extras)))
            if step not in seen:
                seen.add(step)
                waiting.append(step)
    return {name for name, _ in seen} - {"specprof"}


def _requirements(name: str, extras: tuple[str, ...]) -> Iterator[Requirement]:
    if name == "specprof":  # what is installed of it may be older than the checkout
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        yield from map(Requirement, project["dependencies"])
        for extra in extras:
            yield from map(Requirement, project["optional-dependencies"].get(extra, ()))
        return
    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, texts):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def _package(name: str, extras: frozenset[str]) -> Package:
    version = pins().get(name, _UNKNOWN)
    try:
        found = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return Package(name, version, _UNKNOWN, f"https://pypi.org/project/{name}/", extras)
    return Package(found["Name"], version, _licence(found), _page(found), extras)


@functools.cache
def pins() -> dict[str, str]:
    """The versions of constraints.txt, by canonical name."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    return {str(canonicalize_name(name)): version for name, _, version in (line.partition("==") for line in lines)}


def _licence(found: metadata.PackageMetadata) -> str:
    """As the package says it: the expression, else its classifiers, else the first line of the text."""
    if expression := _field(found, "License-Expression"):
        return expression
    classifiers = [c.rpartition(" :: ")[2] for c in found.get_all("Classifier", []) if c.startswith("License :: ")]
    named = [_SHORT.get(c, c) for c in classifiers if c != "OSI Approved"]
    text = _field(found, "License").strip().partition("\n")[0]
    if _NAMED.search(text) and len(text) < 40 and (not named or named == ["BSD"]):
        return text
    return ", ".join(named) or _UNKNOWN


def _page(found: metadata.PackageMetadata) -> str:
    pages = {label.lower(): url for label, _, url in (p.partition(", ") for p in found.get_all("Project-URL", []))}
    named = (pages[label] for label in _HOME_PAGES if label in pages)
    return next(named, None) or _field(found, "Home-page") or f"https://pypi.org/project/{found['Name']}/"


def _field(found: metadata.PackageMetadata, name: str) -> str:
    return found[name] if name in found else ""  # noqa: SIM401  # its type has no get in Python 3.11


def page() -> str:
    """docs/licences.md."""
    packages = needed()
    copyleft = [f"{one.name} ({one.licence})" for one in packages if _COPYLEFT.search(one.licence)]
    unclear = [one.name for one in packages if one.licence == _UNKNOWN]
    loose = [one.name for one in packages if one.version == _UNKNOWN]
    notes = [
        f"With a copyleft: {', '.join(copyleft) or 'none'}. Each is used as it is, as a library.",
        f"Whose metadata names no licence, or isn't there where this page was made: {', '.join(unclear) or 'none'}.",
        f"Of no pinned version: {', '.join(loose) or 'none'}.",
    ]
    rows = [
        "| Package | Version | Licence | Extra | |",
        "|---|---|---|---|---|",
        *(
            f"| {one.name} | {one.version} | {one.licence} | {', '.join(sorted(one.extras))} | <{one.page}> |"
            for one in packages
        ),
    ]
    return "\n".join([_HEAD, *(f"- {note}" for note in notes), "", *rows, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="The licences of what specprof needs to run.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is another")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
        print(PAGE)
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is not what is installed: run python scripts/licences.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
