"""What a user gets from `pip install`: the wheel holds every module and data file, under one name, and works alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent

INTERFACES = ("commands", "tui", "reports")
"""Folders beside specprof/ in the checkout that install inside it."""

NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist", "results"
)

pytestmark = pytest.mark.slow


def files_under(folder: Path) -> set[PurePosixPath]:
    """Everything in a folder that belongs to the package: no caches, no hidden files, links not followed."""
    found: set[PurePosixPath] = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_symlink() or path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            found |= {PurePosixPath(path.name) / below for below in files_under(path)}
        else:
            found.add(PurePosixPath(path.name))
    return found


def source_files() -> set[str]:
    """Names the wheel must have, according to the source tree."""
    files = {PurePosixPath("specprof") / file for file in files_under(ROOT / "specprof")}
    for folder in INTERFACES:
        files |= {PurePosixPath("specprof", folder) / file for file in files_under(ROOT / folder)}
    return {str(file) for file in files}


def build(source: Path, folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "build", *options, "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since setuptools leaves files in the tree it builds from and picks up old ones again."""
    folder = tmp_path_factory.mktemp("packaging") / "source"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=NOT_COPIED)
    return folder


@pytest.fixture(scope="module")
def wheel(request: pytest.FixtureRequest) -> Path:
    """The wheel, made from the source distribution: what is missing from either is missing here."""
    given: str | None = request.config.getoption("--wheel")
    if given is not None:
        return Path(given).resolve()
    source: Path = request.getfixturevalue("checkout")
    folder = source.with_name("dist")
    build(source, folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(wheel: Path) -> Path:
    """The source distribution that the wheel was made from; it lies beside it."""
    (sdist,) = wheel.parent.glob("*.tar.gz")
    return sdist


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own, with nothing of the checkout near it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_from(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python that finds specprof in the folder before it finds the checkout."""
    program = f"import sys; sys.path.insert(0, {str(folder)!r}); " + arguments[0]
    return subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments[1:]], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_the_source_tree_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = source_files()
    assert sorted(expected - names) == [], "in the source tree, not in the wheel"
    assert sorted(names - expected) == [], "in the wheel, not in the source tree"


@pytest.mark.parametrize(
    "pattern",
    [
        "specprof/commands/*.py",
        "specprof/reports/*.py",
        "specprof/reports/page.html",
        "specprof/reports/page.css",
        "specprof/py.typed",
        "specprof/data/*.json",
        "specprof/models/configs/*.json",
        "specprof/models/pairs/tiny_dev/target/model.safetensors",
        "specprof/models/pairs/tiny_cross/draft/model.safetensors",
        "specprof/models/pairs/tiny_cross/draft/tokenizer.json",
        "specprof/models/pairs/tiny_cross/MODEL_CARD.md",
    ],
)
def test_the_comparison_is_not_vacuous(wheel: Path, pattern: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert any(PurePosixPath(name).match(pattern) for name in archive.namelist())


def test_the_wheel_owns_one_top_level_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {PurePosixPath(name).parts[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"specprof"}


def test_the_wheel_carries_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())


def test_the_source_distribution_holds_what_the_wheel_is_made_of_once(sdist: Path) -> None:
    """The links in specprof/ would double three packages; some of the tests, which setuptools adds, could not run."""
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    assert not [name for name, member in members.items() if member.issym() or member.islnk()]
    sources = {name for name in source_files() if name.split("/")[1] not in INTERFACES}
    sources |= {f"{folder}/{file}" for folder in INTERFACES for file in files_under(ROOT / folder)}
    assert sorted(sources - members.keys()) == []
    assert sorted(name for name in members if name.startswith(tuple(f"specprof/{one}" for one in INTERFACES))) == []
    assert {"pyproject.toml", "LICENSE", "README.md"} <= members.keys()
    assert not [name for name in members if name.startswith("tests/")]


def test_a_checkout_makes_the_same_wheel(wheel: Path, checkout: Path, tmp_path: Path) -> None:
    build(checkout, tmp_path, "--wheel")
    (direct,) = tmp_path.glob("*.whl")
    assert contents(direct) == contents(wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_every_module_imports_from_the_wheel_alone(unpacked: Path) -> None:
    program = """
import importlib, pkgutil, specprof
names = [m.name for m in pkgutil.walk_packages(specprof.__path__, "specprof.") if not m.name.endswith("__main__")]
for name in names:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name == "triton", error  # comes with PyTorch for a GPU only
        continue
    assert module.__file__.startswith(sys.argv[1]), module.__file__
print(len(names))
"""
    done = run_from(unpacked, f"exec({program!r})", str(unpacked))
    assert done.returncode == 0, done.stderr
    modules = {name for name in source_files() if name.endswith(".py") and not name.endswith("__main__.py")}
    assert int(done.stdout) == len(modules - {"specprof/__init__.py"})


def test_the_main_job_runs_from_the_wheel_alone(unpacked: Path, tmp_path: Path) -> None:
    command = ["run", "-n", "1", "--max-new-tokens", "8", "--reps", "1", "--json", "--results-dir", str(tmp_path)]
    done = run_from(
        unpacked, "from specprof.commands import main; sys.argv[0] = 'specprof'; sys.exit(main())", *command
    )
    assert done.returncode == 0, done.stderr
    assert '"schema"' in done.stdout
