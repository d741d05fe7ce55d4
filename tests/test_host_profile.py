"""Host profiles: py-spy watches this very process; where it can't, what it says tells why and what to do."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command_line import QUICK, command, isolate, process
from specprof.errors import UsageError
from specprof.profiling import host_profile as module
from specprof.profiling.host_profile import HostProfile, host_profile, permission_problem, profile_format

WITH_SYS_PTRACE = "000001ffffffffff"
WITHOUT = "00000000a80425fb"
"""What Docker gives unless told otherwise."""


def a_function_that_keeps_busy(seconds: float) -> int:
    end, total = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for number in range(2000):
            total += number * number
    return total


def watched_or_skip(profile: HostProfile) -> None:
    if profile.problem is not None and profile.problem == permission_problem():
        pytest.skip(" - ".join(profile.problem))
    assert profile.problem is None


def frames_of(path: Path) -> tuple[set[str], int]:
    """Names of functions in a speedscope file, and how many of its samples were in the busy one."""
    document: dict[str, Any] = json.loads(path.read_text())
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    names = [frame["name"] for frame in document["shared"]["frames"]]
    busy = 0
    for profile in document["profiles"]:
        assert profile["type"] == "sampled"
        busy += sum(
            any("a_function_that_keeps_busy" in names[frame] for frame in stack) for stack in profile["samples"]
        )
    return set(names), busy


# Real profiles


@pytest.mark.parametrize("native", [True, False])
def test_a_busy_function_is_seen(tmp_path: Path, native: bool) -> None:
    path = tmp_path / "p.json"
    with host_profile(path, native=native) as profile:
        watched_or_skip(profile)
        assert not path.exists()
        a_function_that_keeps_busy(0.6)
    assert profile.problem is None
    # Whether native frames are to be had depends on the platform; that they are missing is said.
    assert (profile.native or profile.note is not None) if native else not profile.native
    names, busy = frames_of(path)
    assert any("test_a_busy_function_is_seen" in name for name in names)
    assert profile.num_samples is not None and profile.num_samples >= 10
    assert busy >= 0.5 * profile.num_samples


@pytest.mark.parametrize("name", ["p.svg", "p.txt", "p.SVG"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with host_profile(path) as profile:
        watched_or_skip(profile)
        a_function_that_keeps_busy(0.4)
    assert profile.problem is None
    text = path.read_text()
    assert "a_function_that_keeps_busy" in text
    assert ("<svg" in text) == (path.suffix.lower() == ".svg")


def test_an_error_in_the_block_is_passed_on_and_the_profile_kept(tmp_path: Path) -> None:
    path = tmp_path / "p.json"

    def broken(profile: HostProfile) -> None:
        watched_or_skip(profile)
        a_function_that_keeps_busy(0.3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), host_profile(path) as profile:
        broken(profile)
    assert frames_of(path)[1] > 0


def test_nothing_to_see(tmp_path: Path) -> None:
    for name in ("p.svg", "p.json"):
        with host_profile(tmp_path / name) as profile:
            watched_or_skip(profile)
        # A sample may still fall into the moment between the two.
        if not profile.num_samples:
            assert profile.problem is not None and "no sample" in profile.problem[0]


def test_nowhere_to_write(tmp_path: Path) -> None:
    with host_profile(tmp_path / "missing" / "p.json") as profile:
        watched_or_skip(profile)
        a_function_that_keeps_busy(0.2)
    assert profile.problem is not None
    assert "No such file" in profile.problem[0] and "directory that exists" in profile.problem[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes a capability away, which Linux has")
def test_permission_really_missing(tmp_path: Path) -> None:
    """In a process that its own children can't look into, whoever runs it; the block runs all the same."""
    program = f"""
import ctypes, json
from pathlib import Path
from specprof.profiling.host_profile import host_profile
libc = ctypes.CDLL(None)
libc.prctl(24, 19, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_PTRACE: of children that are root
libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE, no: of children that are not
ran = False
with host_profile(Path("p.json"), root=Path({str(machine(tmp_path, scope="1"))!r})) as profile:
    ran = profile.problem is not None
print(json.dumps([ran, profile.problem, profile.native, profile.note]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    ran, problem, native, note = json.loads(done.stdout)
    assert ran and tuple(problem) == permission_problem(machine(tmp_path, scope="1")) and not native and note is None
    assert problem[1] == "sudo sysctl kernel.yama.ptrace_scope=0"
    assert not (tmp_path / "p.json").exists()
    assert done.stderr == ""


# Another py-spy


def use(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str | None) -> None:
    """Let a shell script stand where py-spy is looked for; None: nothing."""
    directory.mkdir(exist_ok=True)
    monkeypatch.setattr(sys, "executable", str(directory / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if script is not None:
        (directory / "py-spy").write_text(f"#!/bin/sh\n{script}\n")
        (directory / "py-spy").chmod(0o755)


def real_py_spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    assert found is not None
    return shlex.quote(found)


def test_py_spy_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tmp_path / "bin", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with host_profile(tmp_path / "p.json") as profile:
        assert profile.problem == ("py-spy, which makes host profiles, is not installed", "pip install py-spy")


def test_py_spy_can_not_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tmp_path / "bin", "exit 0")
    (tmp_path / "bin" / "py-spy").write_bytes(b"\x7fELF")
    with host_profile(tmp_path / "p.json") as profile:
        assert profile.problem is not None and "can't be run" in profile.problem[0]


def test_without_native_frames_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsupported = "echo \"error: unexpected argument '--native' found\" >&2; exit 2"
    script = f'case "$*" in *--native*) {unsupported};; esac\nexec {real_py_spy()} "$@"'
    use(monkeypatch, tmp_path / "bin", script)
    with host_profile(tmp_path / "p.json") as profile:
        watched_or_skip(profile)
        a_function_that_keeps_busy(0.3)
    assert profile.problem is None and not profile.native
    assert profile.note == "no native frames: py-spy has none on this platform"
    assert frames_of(tmp_path / "p.json")[1] > 0


def test_without_native_frames_where_they_are_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = "printf 'Error: Failed to lock.\\n\\nCaused by:\\n    EPERM: Operation not permitted\\n' >&2; exit 1"
    script = f'case "$*" in *--native*) {refused};; esac\nexec {real_py_spy()} "$@"'
    use(monkeypatch, tmp_path / "bin", script)
    with host_profile(tmp_path / "p.txt") as profile:
        watched_or_skip(profile)
        a_function_that_keeps_busy(0.3)
    assert profile.problem is None and not profile.native
    assert profile.note == "no native frames: py-spy may not stop this process"


def test_py_spy_fails_for_another_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tmp_path / "bin", "echo 'Error: Failed to find python version from target process' >&2; exit 1")
    with host_profile(tmp_path / "p.json") as profile:
        assert profile.problem is not None and profile.note is None
    assert profile.problem[0] == "py-spy failed: Failed to find python version from target process"
    assert "upgrade" in profile.problem[1]


def test_py_spy_never_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tmp_path / "bin", "exec sleep 60")
    monkeypatch.setattr(module, "ATTACH_SECONDS", 0.1)
    start = time.monotonic()
    with host_profile(tmp_path / "p.json") as profile:
        assert profile.problem is not None and "did not begin within 0.1 seconds" in profile.problem[0]
    assert time.monotonic() - start < 5


def test_py_spy_never_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tmp_path / "bin", "trap '' INT; echo 'Sampling process'; exec sleep 60")
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.1)
    with host_profile(tmp_path / "p.json") as profile:
        watched = profile.problem is None
    assert watched and profile.problem is not None and "within 0.1 seconds" in profile.problem[0]


@pytest.mark.parametrize("name", ["p", "p.html", "p.json.gz", ".json"])
def test_endings_without_a_format(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="can't be written as") as raised:
        profile_format(tmp_path / name)
    assert ".json" in raised.value.hint and ".svg" in raised.value.hint and ".txt" in raised.value.hint
    with pytest.raises(UsageError), host_profile(tmp_path / name):
        pytest.fail("it began")


# Why permission is missing


def machine(
    directory: Path,
    *,
    scope: str | None = None,
    given: str = WITHOUT,
    effective: str | None = None,
    seccomp: int = 0,
    files: tuple[str, ...] = (),
    cgroup: str = "0::/\n",
) -> Path:
    """What the kernel shows of a process, under a directory."""
    proc = directory / "proc"
    (proc / "self").mkdir(parents=True, exist_ok=True)
    (proc / "1").mkdir(exist_ok=True)
    (proc / "1/cgroup").write_text(cgroup)
    (proc / "self/status").write_text(
        f"Name:\tpython: 3\nCapInh:\t{'0' * 16}\nCapEff:\t{effective or given}\nCapBnd:\t{given}\nSeccomp:\t{seccomp}\n"
    )
    if scope is not None:
        (proc / "sys/kernel/yama").mkdir(parents=True, exist_ok=True)
        (proc / "sys/kernel/yama/ptrace_scope").write_text(f"{scope}\n")
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    return directory


DOCKER = {"files": (".dockerenv",), "seccomp": 2}
POD = {"files": ("var/run/secrets/kubernetes.io/token",), "seccomp": 0}
USER = "0" * 16


@pytest.mark.parametrize(
    ("what", "wrong", "cure"),
    [
        (DOCKER, "this container lacks", "docker run --cap-add SYS_PTRACE ...`"),
        ({"files": ("run/.containerenv",)}, "this container lacks", "--cap-add SYS_PTRACE"),
        ({"cgroup": "12:pids:/docker/0a1b\n"}, "this container lacks", "--cap-add SYS_PTRACE"),
        (DOCKER | {"scope": "2"}, "this container lacks", "--cap-add SYS_PTRACE"),
        (DOCKER | {"given": WITH_SYS_PTRACE}, "seccomp", "--security-opt seccomp=unconfined"),
        (POD, "this pod lacks", 'securityContext: {capabilities: {add: ["SYS_PTRACE"]}}'),
        (POD | {"files": (".dockerenv", *POD["files"])}, "this pod lacks", "securityContext"),  # type: ignore[misc]
        ({"cgroup": "0::/kubepods/besteffort/pod1\n"}, "this pod lacks", "securityContext"),
        (DOCKER | {"scope": "3"}, "ptrace_scope is 3", "on the machine itself"),
        ({"scope": "3", "given": WITH_SYS_PTRACE}, "ptrace_scope is 3", "reboot"),
        (
            {"scope": "2", "given": WITH_SYS_PTRACE, "effective": USER},
            "ptrace_scope is 2",
            "sudo sysctl kernel.yama.ptrace_scope=1",
        ),
        (
            {"scope": "1", "given": WITH_SYS_PTRACE, "effective": USER},
            "ptrace_scope is 1",
            "sudo sysctl kernel.yama.ptrace_scope=0",
        ),
        ({"scope": "0", "effective": USER, "seccomp": 2}, "a seccomp filter", "outside the sandbox"),
        ({"scope": "1", "given": WITH_SYS_PTRACE, "seccomp": 2}, "a seccomp filter", "outside the sandbox"),
        ({"scope": "0", "effective": USER}, "may not look", "with sudo"),
        ({"effective": "nonsense"}, "may not look", "with sudo"),
    ],
)
def test_why_permission_is_missing(tmp_path: Path, what: dict[str, Any], wrong: str, cure: str) -> None:
    problem = permission_problem(machine(tmp_path, **what), platform="linux")
    assert wrong in problem[0] and cure in problem[1]
    assert all("\n" not in sentence and not sentence.endswith(".") for sentence in problem)


def test_where_nothing_is_told(tmp_path: Path) -> None:
    assert permission_problem(tmp_path, platform="linux")[1] == "run the same command with sudo"


def test_other_systems(tmp_path: Path) -> None:
    assert permission_problem(tmp_path, platform="darwin") == (
        "macOS lets only root look into another process",
        "run the same command with sudo",
    )
    assert "administrator" in permission_problem(tmp_path, platform="win32")[1]


def test_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (
        "Permission Denied: Try running again with elevated permissions by going 'sudo env \"PATH=$PATH\" !!'",
        "Error: Operation not permitted (os error 1)",
        "Error: Failed to suspend process: EPERM (os error 13)",
    ):
        use(monkeypatch, tmp_path / "bin", f"echo {shlex.quote(words)} >&2; exit 1")
        with host_profile(tmp_path / "p.json", root=machine(tmp_path, **DOCKER)) as profile:  # type: ignore[arg-type]
            assert profile.problem is not None and "--cap-add SYS_PTRACE" in profile.problem[1], words


# The command


@pytest.mark.slow
def test_a_run_is_profiled_after_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    child = process("run", *QUICK, "--json", "--host-profile", "p.json")
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    document = json.loads(out)
    # A repetition of its own, which is in no figure.
    assert document["num_repetitions"] == 1 and document["speculative"]["num_generations"] == 1
    if Path("p.json").exists():
        profile = json.loads(Path("p.json").read_text())
        # These few tokens take milliseconds, in which there may be no sample at all: they are decoded for long enough.
        names = [frame["name"] for frame in profile["shared"]["frames"]]
        samples = [sample for thread in profile["profiles"] for sample in thread["samples"]]
        decoding = [sample for sample in samples if any(names[frame] == "decode_for" for frame in sample)]
        assert len(decoding) > len(samples) / 2
    else:
        assert "warning: no host profile: " in err


def test_a_profile_of_another_kind_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(tmp_path, monkeypatch)
    outcome = command("run", *QUICK, "--host-profile", "p.pdf")
    assert outcome.code == UsageError.exit_code and outcome.out == ""
    assert "p.pdf" in outcome.told[0] and not list(Path().rglob("*"))
