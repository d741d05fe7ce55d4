"""A results store as a pandas data frame: one row per generation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specprof.errors import ResourceError
from specprof.experiments.records import COUNTS, CellStarted, Generation, GenerationKey, Machine
from specprof.experiments.results import FILE_NAME, LOG, check_is_there, read_records, reported
from specprof.experiments.saved_runs import mapping
from specprof.profiling.signs import visible

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

# In the order they have in the frame, with their pandas types.
_KINDS = {
    "sequence": "Int64",
    "session": "string",
    "started_at": "time",
    "config_hash": "string",
    "machine_class": "string",
    "pair": "string",
    "domain": "string",
    "decoder": "string",
    "K": "Int64",
    "temperature": "float64",
    "drafter": "string",
    "vocab_method": "string",
    "prompt_id": "string",
    "prompt_hash": "string",
    "repetition": "Int64",
    "control": "bool",
    "num_prompt_tokens": "Int64",
    "num_tokens": "Int64",
    "finish_reason": "string",
    "total_time": "float64",
    "time_to_first_token": "float64",
    "decode_seconds": "float64",
    "tokens_per_second": "float64",
    "tokens_per_second_decode": "float64",
    "acceptance_rate": "float64",
    "tokens_per_step": "float64",
    "num_speculation_rounds": "Int64",
    **dict.fromkeys(COUNTS, "Int64"),
    "draft_time_total_ms": "float64",
    "verify_time_total_ms": "float64",
    "sampling_time_total_ms": "float64",
    "prefill_target_seconds": "float64",
    "prefill_draft_seconds": "float64",
    "peak_memory_mb": "float64",
    "prefill_peak_memory_mb": "float64",
    "energy_joules": "float64",
    "target_model": "string",
    "target_dtype": "string",
    "target_revision": "string",
    "draft_model": "string",
    "draft_dtype": "string",
    "draft_revision": "string",
    "cpu": "string",
    "gpu": "string",
    "torch": "string",
    "transformers": "string",
    "specprof": "string",
    "caveats": "string",
}

COLUMNS = tuple(_KINDS)


def load_results(directory: str | Path = "results") -> pandas.DataFrame:
    """Every generation of a results store, controls included, in the order they were measured.

    Columns are described in docs/results.md; a number that is undefined is missing, never 0.

    Raises:
        UsageError: there is no store in ``directory``, or an incompatible version wrote it.
        ResourceError: pandas is not installed, or the file can't be read.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ResourceError("loading results needs pandas", "pip install 'specprof[analysis]'") from error
    path = Path(directory) / FILE_NAME
    check_is_there(path)
    rows = _rows(path)
    columns = {}
    for name, kind in _KINDS.items():
        values = [row[name] for row in rows]
        if kind == "time":
            columns[name] = pd.Series(pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601"))
        else:
            columns[name] = pd.Series(values, dtype=kind)
    return pd.DataFrame(columns)


def for_spreadsheets(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The same with texts that a program which opens CSV takes for nothing but texts.

    What begins like a formula gets an apostrophe before it, and a character that shows nothing is spelled out.
    """
    texts = [name for name, kind in _KINDS.items() if kind == "string"]
    return frame.assign(**{name: frame[name].map(_inert, na_action="ignore") for name in texts})


def _inert(text: str) -> str:
    return visible(f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: dict[GenerationKey, dict[str, Any]] = {}
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    machines: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    with reported(path, "reading"):
        for values, record in read_records(path, notes, with_rounds=False):
            match record:
                case Generation():
                    rows.setdefault(record.key, _measured(record, values))
                case CellStarted():
                    cells[record.config_hash, record.machine_class] = _asked(record)
                case Machine():
                    machines[record.machine_class] = _ran_on(record.machine)
    for note in notes:
        LOG.warning("%s: %s", path, note)
    nothing = dict.fromkeys(COLUMNS)
    return [
        nothing | machines.get(key.machine_class, {}) | cells.get((key.config_hash, key.machine_class), {}) | row
        for key, row in rows.items()
    ]


def _measured(generation: Generation, values: Mapping[str, Any]) -> dict[str, Any]:
    result = generation.result
    decode_seconds = result.decode_seconds
    row: dict[str, Any] = {name: values.get(name) for name in COLUMNS if name in values}
    row |= {
        "K": None if isinstance(generation.K, str) else generation.K,
        "num_tokens": result.num_tokens,
        "decode_seconds": decode_seconds,
        "tokens_per_second": result.tokens_per_second,
        "tokens_per_second_decode": result.num_decode_tokens / decode_seconds if decode_seconds > 0 else None,
    }
    return {name: _unicode(value) if isinstance(value, str) else value for name, value in row.items()}


def _asked(cell: CellStarted) -> dict[str, Any]:
    columns = {
        "drafter": _text(cell.config.get("drafter")) if cell.config.get("K") else None,
        "vocab_method": _text(cell.vocab_method),
        "caveats": _text("; ".join(cell.caveats) or None),
    }
    for role in ("target", "draft") if cell.config.get("K") else ("target",):
        model = mapping(cell.models.get(role))
        columns[f"{role}_model"] = _text(model.get("model"))
        columns[f"{role}_dtype"] = _text(model.get("dtype"))
        columns[f"{role}_revision"] = _text(model.get("revision") or cell.config.get(f"{role}_revision"))
    return columns


def _ran_on(machine: Mapping[str, Any]) -> dict[str, Any]:
    columns = {name: _text(machine.get(name)) for name in ("cpu", "torch", "transformers", "specprof")}
    return columns | {"gpu": _text(mapping(machine.get("gpu")).get("name"))}


def _text(value: Any) -> str | None:
    return _unicode(value) if isinstance(value, str) else None


def _unicode(text: str) -> str:
    # JSON can spell half a character, which no CSV or Parquet file can hold.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
