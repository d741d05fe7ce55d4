"""``benchmarks/gpu.py`` from end to end at toy sizes, what its figures say, and ``scripts/gpu.sh`` without a GPU."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
TOO_UNEVEN = "the machine was too uneven to tell"


def benchmark(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The table, and the document."""
    path = tmp_path_factory.mktemp("benchmark") / "gpu.json"
    done = benchmark("--device", "cpu", "--quick", "-o", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def table() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_table", BENCHMARKS / "gpu_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_everything_but_cuda_runs(finished: tuple[str, dict[str, Any]]) -> None:
    """What could not be measured is what needs a GPU, and nothing else: no fault hides among it."""
    _, document = finished
    assert set(document["shapes"]) == {"gpt2_dev", "tinyllama_llama3"}
    reasons = {re.sub(r"^.*?: ", "", line) for line in document["skipped"]}
    assert reasons - {TOO_UNEVEN} == {
        "CUDA graphs need a CUDA device",
        "it needs tokenizers where the vocabularies differ",
    }
    assert document["packaged"]["texts_are_equal"]
    attended = {row["attention"] for row in document["attention"] if row["seconds"] is not None}
    assert attended >= {"explicit", "choice"}
    assert len(document["linear_rows"]) == 16


@pytest.mark.slow
def test_every_arm_that_ran_has_every_figure(finished: tuple[str, dict[str, Any]]) -> None:
    skipped = finished[1]["skipped"]
    for name, shape in finished[1]["shapes"].items():
        assert [(row["engine"], row["k"]) for row in shape["rows"]] == [
            (engine, k) for engine in ("eager", "static", "graph") for k in (0, 2, 4)
        ]
        for row in shape["rows"]:
            figures = [row["seconds_per_token"], row["seconds_per_round"]]
            arm = f"K = {row['k']}" if row["k"] else "AR"
            if row["engine"] == "graph" or f"{name}, {row['engine']}, {arm}: {TOO_UNEVEN}" in skipped:
                assert figures == [None, None] and row["limits"] is None
                continue
            assert all(0 < figure < 1 for figure in figures)
            # Of one round two ways: by wall clocks around generations, and from inside them.
            inside = sum(row[f"{phase}_seconds"] for phase in ("draft", "verify", "sample", "host"))
            assert 0.1 < inside / row["seconds_per_round"] < 10
            assert (row["draft_cost_ratio"] is None) == (row["k"] == 0)
            assert math.isclose(row["seconds_per_token"] * row["tokens_per_round"], row["seconds_per_round"])
            assert {"bandwidth", "host"} <= set(row["limits"]["shares"])
        assert shape["rollback"] and shape["instrumentation"]["k"] == 4
        assert shape["hugging_face"]["dynamic"] > 0
    gpt2 = finished[1]["shapes"]["gpt2_dev"]
    assert gpt2["hugging_face"]["static"] > 0 and gpt2["hugging_face"]["assisted"]["k"] == 4
    # 8 layers are cut to 2: what they read follows from their shapes.
    assert gpt2["layers"] == 2 and 8e6 < gpt2["passes"]["target"]["bytes"] < 16e6


@pytest.mark.slow
def test_the_table_has_a_dash_for_what_is_not_known(finished: tuple[str, dict[str, Any]]) -> None:
    text, document = finished
    (line, _) = (line for line in text.splitlines() if line.startswith("  graph AR     ") and "tok/s" not in line)
    assert set(line.split()[2:]) == {"-"}
    for goal in document["must_reach"]:
        assert goal["reached"] is None  # toy sizes reach nothing
        assert re.search(rf"{re.escape(goal['what'])} .* -$", text, re.MULTILINE)
    assert "NOT REACHED" not in text and "Toy sizes" in text


@pytest.mark.slow
def test_goals_are_judged_from_what_was_measured(finished: tuple[str, dict[str, Any]]) -> None:
    document = json.loads(json.dumps(finished[1])) | {"quick": False}
    gpt2, llama = (document["shapes"][name] for name in ("gpt2_dev", "tinyllama_llama3"))
    plain, best = (next(row for row in gpt2["rows"] if (row["engine"], row["k"]) == ("static", k)) for k in (0, 4))
    plain["seconds_per_token"], best["seconds_per_round"], best["host_share"] = 0.003, 0.006, 0.2
    gpt2["hugging_face"] = {"dynamic": 0.03, "static": 0.003, "assisted": {"k": 4, "seconds_per_round": 0.06}}
    gpt2["share_of_bandwidth"], llama["share_of_bandwidth"] = 0.6, 0.79
    for row in llama["rows"]:
        row["draft_cost_ratio"] = 0.17 if row["k"] and row["engine"] == "static" else None
    gpt2["instrumentation"] = None
    for shape, share in ((gpt2, -0.01), (llama, 0.03)):
        shape["rollback"] = [{"context": 16, "k": 4, "seconds": 1e-6, "share": share}]
    found = [(goal["measured"], goal["reached"]) for goal in table().must_reach(document)]
    assert found == [
        (pytest.approx(10), True),
        (pytest.approx(10), True),
        (pytest.approx(1), False),
        (0.79, False),
        (0.6, True),
        (0.17, True),
        (0.2, False),
        (None, None),
        (0.03, False),
    ]
    assert table().render(document | {"must_reach": table().must_reach(document)}).count("NOT REACHED") == 4


def test_an_arm_whose_long_generation_took_no_longer_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had one of a billion rounds a second."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module, arms = importlib.import_module("gpu_shape"), importlib.import_module("gpu_arms")
    monkeypatch.setattr(module, "wall_seconds", lambda decoder, request: 0.5)
    plan = arms.Plan(torch.device("cpu"), ("eager",), (2,), 0.8, 4, 12, 3, 1, math.inf)
    pair = arms.load_pair(arms.QUICK_SHAPES[0], plan)
    long = module.request_of(pair.target, 4, 12)
    decoders = {("eager", k): arms.decoder_of("eager", pair, k, 0.8) for k in (0, 2)}
    assert module.measure_speeds(arms.QUICK_SHAPES[0], decoders, plan, long) == {}
    assert plan.skipped == [f"gpt2_dev, eager, {arm}: {TOO_UNEVEN}" for arm in ("AR", "K = 2")]


def test_what_limits_a_row() -> None:
    limits = table().limits
    assert limits(1.0, {"bandwidth": 0.8, "host": 0.1})["by"] == "bandwidth"
    assert limits(1.0, {"bandwidth": 0.2, "kernels": 0.6, "host": 0.1})["by"] == "kernels"
    unclear = limits(1.0, {"bandwidth": 0.3, "kernels": None, "host": 0.1})
    assert unclear["by"] == "nothing alone" and set(unclear["shares"]) == {"bandwidth", "host"}


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--engines", "eager,warp"), "there is no engine 'warp'"),
        (("--device", "cpu"), "--device cpu --quick runs everything at toy sizes"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    flags: tuple[str, ...], error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("gpu").main(flags)
    assert ended.value.code == 2 and error in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "gpu.sh"
    done = subprocess.run(
        ["bash", str(script), str(tmp_path / "results")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    assert done.returncode == 4 and "no CUDA GPU" in done.stderr
    assert not (tmp_path / "results").exists()
