"""The split-KV kernels: interpreted on the CPU, compiled for a GPU that is not there, refused where they can't be."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dense_attention import slab
from specprof.errors import ResourceError
from specprof.models import split_kv as module
from specprof.models.slab_attention import SlabRows
from specprof.models.split_kv import MOST_ROWS, available, split_kv

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
TESTS = Path(__file__).parent


@needs_triton
@pytest.mark.slow
def test_the_kernels_are_attention_to_the_bit_the_same_in_every_row() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, TESTS / "interpreted_split_kv.py"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter can't count with this NumPy")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["errors"]) >= 30
    for case, error in found["errors"]:
        assert error < (1e-5 if "float32" in case else 5e-3), case
    assert [case for case, same in found["rows"] if not same] == []
    assert len(found["rows"]) == 16
    assert found["compiled"] < 1e-5
    assert found["measured"]["split_kv"] == found["measured"]["explicit"] == ""
    assert found["measured"].keys() == {"explicit", "varlen", "split_kv"} and found["measured"]["varlen"] != ""


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("windowed", [False, True])
def test_the_kernels_compile_for_gpus(
    windowed: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter runs Python that the compiler would refuse."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
    from triton.backends.compiler import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        GPUTarget,
    )
    from triton.compiler import ASTSource  # type: ignore[import-not-found, import-untyped, unused-ignore]

    from specprof.models.split_kv_kernels import attend_part, merge_parts

    def compiled(kernel: Any, constants: Mapping[str, object], model_typed: set[str], warps: int) -> Any:
        types = {"positions": "*i64", "scale": "fp32", "parts": "*fp32", "tops": "*fp32", "sums": "*fp32"}
        types |= dict.fromkeys(model_typed, f"*{dtype}") | dict.fromkeys(constants, "constexpr")
        signature = {name: types.get(name, "i32") for name in kernel.arg_names}
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(kernel, signature, places)
        return triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": warps, "num_stages": 2})

    shape = {"WIDTH": 5, "GROUPS": 4, "DIM": 64, "SPLITS": 12, "PADDED_DIM": 64}
    constants = shape | {"WINDOWED": windowed, "BLOCK": 64, "PADDED_ROWS": 32}
    part = compiled(attend_part, constants, {"q", "keys", "values"}, 4)
    assert part.metadata.shared <= 96 << 10  # of the smallest GPUs since 2020: 99 KiB a block
    assert ("mma" in part.asm["ptx"]) == (dtype != "fp32")  # tensor cores, but never TF32 in the place of float32
    constants = {"ROWS": 20, "DIM": 64, "SPLITS": 12, "PADDED_SPLITS": 16, "PADDED_DIM": 64}
    merge = compiled(merge_parts, constants, {"out"}, 4)
    assert "cubin" in part.asm and "cubin" in merge.asm


def test_splits_fill_the_gpu_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_processors", lambda device: 132)
    device = torch.device("cpu")
    assert module._splits(8, 4096, device) == 33  # twice 132 blocks of threads
    assert module._splits(8, 512, device) == 8  # as many as there are blocks of 64 entries
    assert module._splits(8, 500, device) == 8
    assert module._splits(25, 64, device) == 1
    assert module._splits(400, 4096, device) == 1
    assert module._splits(1, 1 << 17, device) == 64


def test_where_triton_is_not_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    available.cache_clear()
    try:
        assert available() == "Triton is not installed"
        with pytest.raises(ResourceError, match="Triton is not installed"):
            attend(4, 2, 1, torch.float16)
    finally:
        available.cache_clear()


@pytest.fixture
def as_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available", lambda: None)


@pytest.mark.usefixtures("as_if_available")
def test_what_the_kernels_do_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=f"136 query rows share a key head, at most {MOST_ROWS}"):
        attend(8, 1, 17, torch.float16)
    with pytest.raises(ValueError, match="no kernel for float64"):
        attend(4, 2, 1, torch.float64)


def attend(heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> None:
    q, keys, values = slab(heads, kv_heads, width, 16, 64, 0, dtype)
    split_kv(q, keys, values, SlabRows(torch.arange(width), 64, dtype), None, 0.25)
