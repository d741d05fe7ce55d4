"""What a sweep measures, from flags or a YAML file; what can't be meant is refused by its flag or its line.

Needs pydantic, which takes a fifth of a second: import it once there is a sweep to describe.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from specprof.decoding.settings import check_temperature
from specprof.errors import UsageError
from specprof.experiments.config import WITH_PROBABILITIES, RunConfig
from specprof.experiments.number_lists import MAX_VALUES, parse_decimals, parse_numbers, quoted
from specprof.experiments.yaml_lines import Entry, read_settings
from specprof.models.devices import canonical_dtype
from specprof.models.registry import ModelPair, get_pair

_Name = Annotated[str, Field(min_length=1)]
_AtLeastOne = Annotated[int, Field(ge=1)]
_NotNegative = Annotated[int, Field(ge=0)]
_Probability = Annotated[float, Field(ge=0, le=1)]
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where the values of a configuration were written; they are equal wherever that was."""

    path: Path | None = field(default=None, compare=False)
    entries: Mapping[str, Entry] = field(default_factory=dict, compare=False)
    """Of the file, by field."""
    flags: frozenset[str] = field(default=frozenset(), compare=False)
    """Fields given on the command line. The others have their defaults."""

    def with_flags(self, flags: Collection[str], kept: Collection[str]) -> _Origin:
        return _Origin(
            self.path,
            {name: entry for name, entry in self.entries.items() if name in kept},
            frozenset(flags) | (self.flags & frozenset(kept)),
        )

    def refusal(self, message: str, hint: str, at: tuple[int | str, ...] = ()) -> UsageError:
        """An error worded with flags; worded with keys and lines as far as the values it names stand in a file.

        Args:
            at: the field, and the item of its list, that is wrong; by default every field the message names.
        """
        entry = self.entry(at)
        lines = self._lines_named(message) if entry is None else {entry.line}
        if not lines:
            return UsageError(message, hint)
        *others, last = map(str, sorted(lines))
        where = f"lines {', '.join(others)} and {last}" if others else f"line {last}"
        return UsageError(f"{self.path}, {where}: {_FLAG.sub(self._key, message)}", _FLAG.sub(self._key, hint))

    def entry(self, at: tuple[int | str, ...]) -> Entry | None:
        """What the file has there: the item if it can be told apart, else the whole field."""
        found = self.entries.get(str(at[0])) if at else None
        if found is not None and len(at) > 1 and isinstance(at[1], int) and at[1] < len(found.items):
            return found.items[at[1]]
        return found

    def line(self, at: tuple[int | str, ...]) -> int:
        """Of the file; 0 of what isn't in it."""
        entry = self.entry(at)
        return 0 if entry is None else entry.line

    def _lines_named(self, message: str) -> set[int]:
        named = {_field_of(flag) for flag in _FLAG.findall(message)}
        return {entry.line for name, entry in self.entries.items() if name in named}

    def _key(self, flag: re.Match[str]) -> str:
        name = _field_of(flag[0])
        return name if name in SweepConfig.model_fields and name not in self.flags else flag[0]


class SweepConfig(BaseModel):
    """What a sweep measures: every pair in every domain, at every temperature, with every drafter and K.

    Lists are also accepted as text: ``k="1-4,8"`` (:func:`parse_numbers`), ``domains="code,conversation"``.
    Built directly, it raises pydantic's ValidationError; :meth:`load` and :meth:`with_flags` say the same as a
    UsageError, in a sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    pairs: tuple[_Name, ...] = ("tiny_dev",)
    draft: _Name | None = None
    """With ``target``, one pair of models instead of ``pairs``: hub ids or directories."""
    target: _Name | None = None
    k: tuple[int | Literal["auto"], ...] = (1, 2, 4, 8)
    """Tokens drafted per round; plain decoding, 0, is measured anyway."""
    k_max: _AtLeastOne | None = None
    domains: tuple[_Name, ...] | None = None
    """None: every domain of the prompts."""
    temperatures: tuple[float, ...] = (0.0,)
    drafters: tuple[Literal["model", "ngram", "layerskip", "self", "random"], ...] = ("model",)
    draft_layers: _AtLeastOne | None = None
    draft_threshold: _Probability = 0.0
    vocab_method: Literal["auto", "tli", "slem"] = "auto"
    prompts: _Name | None = None
    """A file; None: the packaged prompts."""
    num_prompts: _AtLeastOne | None = 10
    """Prompts of each domain; None: all."""
    repetitions: _AtLeastOne = 3
    max_new_tokens: _AtLeastOne = 96
    top_k: _NotNegative = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    warmup: _NotNegative = 1
    dtype: str | None = None
    """Of both models; None: what each pair names."""
    device: str | None = None
    device_map: str | None = None
    forward: Literal["auto", "native", "own", "hf"] = "auto"
    engine: Literal["auto", "eager", "static", "graph"] = "auto"
    compile: bool = False
    ignore_eos: bool = False
    detail: bool = False
    deterministic: bool = False
    chat_template: Literal["auto", "off"] = "auto"
    random_weights: bool = False
    scale_layers: _AtLeastOne | None = None
    synthetic_acceptance: _Probability | None = None
    trust_remote_code: bool = False

    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SweepConfig:
        """Read a YAML file. Models and prompts given by a path are looked for beside the file first.

        Raises:
            UsageError: it can't be read, or says what can't be meant; names the file and the line.
        """
        path = Path(path)
        entries = read_settings(path)
        values = {key: entry.value for key, entry in entries.items()}
        if values.get("trust_remote_code"):
            line = entries["trust_remote_code"].line
            raise UsageError(
                f"{path}, line {line}: a file can't allow a model's own code to run",
                "read that code, then allow it with --trust-remote-code",
            )
        for key in ("draft", "target", "prompts"):
            if isinstance(values.get(key), str):
                values[key] = _beside(path, values[key])
        return cls._checked(values, _Origin(path, entries))

    def with_flags(self, **given: Any) -> SweepConfig:
        """The same sweep with what the command line says instead; None says nothing.

        Naming ``pairs`` discards ``draft`` and ``target``, and the other way round. A setting of the file has no
        effect where flags leave out what it is for: the number of layers, say, without the drafter that skips them.

        Raises:
            UsageError: a value that can't be meant; names the flag, or what it contradicts in the file.
        """
        flags = {name: value for name, value in given.items() if value is not None}
        instead = {"pairs": ("draft", "target"), "draft": ("pairs",), "target": ("pairs",)}
        replaced = {name for flag in flags for name in (flag, *instead.get(flag, ()))}
        kept = {name: getattr(self, name) for name in self.model_fields_set - replaced}
        return self._checked(kept | flags, self._origin.with_flags(flags, kept), inherited=frozenset(kept))

    def model_pairs(self) -> tuple[ModelPair, ...]:
        """The pairs named, with ``dtype`` for both models where it is given.

        Raises:
            UsageError: there is no such pair.
        """
        if self.target is not None:
            # The last part of a path or id reads well in a title; the record has the whole.
            name = "+".join(Path(model).name for model in (self.draft, self.target) if model is not None)
            found = [ModelPair(name, self.draft or self.target, self.target)]
        else:
            found = [self._registered(name) for name in self.pairs]
        if self.dtype is None:
            return tuple(found)
        return tuple(dataclasses.replace(pair, draft_dtype=self.dtype, target_dtype=self.dtype) for pair in found)

    def run_configs(self, pair: ModelPair, *, offline: bool = False) -> Iterator[RunConfig]:
        """The cells of one pair in one domain: at each temperature plain decoding (k = 0), then each drafter and K.

        A setting goes to the cells it applies to.
        """
        drafting = {"k", "k_max", "draft_layers", "draft_threshold", "vocab_method"}
        shared = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(RunConfig)
            if f.name in type(self).model_fields and f.name not in drafting
        }
        shared |= {"pair": pair, "baseline": False, "offline": offline}
        for temperature in self.temperatures:
            yield RunConfig(**shared, temperature=temperature, k=0)
            for drafter in self.drafters:
                for k in self.k:
                    yield RunConfig(
                        **shared,
                        temperature=temperature,
                        drafter=drafter,
                        k=k,
                        k_max=self.k_max if k == "auto" else None,
                        draft_layers=self.draft_layers if drafter == "layerskip" else None,
                        draft_threshold=self.draft_threshold if drafter in WITH_PROBABILITIES else 0.0,
                        vocab_method=self.vocab_method if drafter == "model" else "auto",
                    )

    def _registered(self, name: str) -> ModelPair:
        try:
            return get_pair(name)
        except UsageError as error:
            written = self._origin.entries.get("pairs")
            items = [item.value for item in written.items] if written else []
            at = ("pairs", items.index(name)) if name in items else ("pairs",)
            raise self._origin.refusal(error.message, error.hint, at) from error

    @classmethod
    def _checked(
        cls, values: Mapping[str, Any], origin: _Origin, inherited: frozenset[str] = frozenset()
    ) -> SweepConfig:
        try:
            config = cls.model_validate(values, context={"inherited": inherited})
        except ValidationError as refused:
            # A file is mended from the top.
            first = min(refused.errors(), key=lambda error: origin.line(_place(error)))
            raise _told(first, origin) from refused
        config._origin = origin
        return config

    @field_validator("k", mode="before")
    @classmethod
    def _read_k(cls, value: object) -> tuple[object, ...]:
        return _flattened(value, _k_item)

    @field_validator("temperatures", mode="before")
    @classmethod
    def _read_temperatures(cls, value: object) -> tuple[object, ...]:
        return _flattened(value, _temperature_item)

    @field_validator("pairs", "domains", "drafters", mode="before")
    @classmethod
    def _read_names(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(","))
        if isinstance(value, list | tuple):
            return tuple(value)
        return value if value is None else (value,)

    @field_validator("pairs", "domains", "drafters", "k", "temperatures", mode="after")
    @classmethod
    def _each_once(cls, values: tuple[_Value, ...] | None, info: ValidationInfo) -> tuple[_Value, ...] | None:
        if values is None:
            return None
        flag = _flag_of(info.field_name or "")
        if not values:
            raise _refused(UsageError(f"{flag} is an empty list", "name at least one, or leave it out"))
        distinct = tuple(dict.fromkeys(values))
        if len(distinct) > MAX_VALUES:
            raise _refused(UsageError(f"{flag} has more than {MAX_VALUES} values", "leave some out"))
        return distinct

    @field_validator("chat_template", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads `off` as false

    @field_validator("dtype", mode="after")
    @classmethod
    def _full_name(cls, value: str | None) -> str | None:
        try:
            return None if value is None else canonical_dtype(value)
        except UsageError as error:
            raise _refused(error) from error

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> SweepConfig:
        inherited: Collection[str] = (info.context or {}).get("inherited", ())
        try:
            self._check_models(inherited)
            self._check_settings_apply(inherited)
            for _ in self.run_configs(ModelPair("", "", "")):
                pass  # refused is what no run can mean
        except UsageError as error:
            raise _refused(error) from error
        return self

    def _check_models(self, inherited: Collection[str]) -> None:
        if "pairs" in self.model_fields_set and (self.draft is not None or self.target is not None):
            raise UsageError("--pair excludes --draft and --target", "give one or the other")
        if self.draft is not None and self.target is None:
            raise UsageError("--draft needs --target", "name both models, by hub id or directory")
        if self.target is not None and self.draft is None and "model" in self.drafters:
            raise UsageError(
                "--target needs --draft", "name both models, or use --drafter ngram (or another that needs no draft)"
            )
        if self.draft is not None and "model" not in self.drafters and "draft" not in inherited:
            raise UsageError(
                f"--draft does not apply to --drafter {','.join(self.drafters)}",
                "leave it out: no second model is loaded",
            )

    def _check_settings_apply(self, inherited: Collection[str]) -> None:
        """Refuse what would silently do nothing; but flags may leave no use for what the file sets."""
        given = ",".join(self.drafters)
        checks = (
            (
                "k_max",
                self.k_max is not None and "auto" not in self.k,
                "--k-max needs --k auto",
                "with a fixed k, exactly that many are drafted every round",
            ),
            (
                "draft_layers",
                self.draft_layers is not None and "layerskip" not in self.drafters,
                f"--draft-layers does not apply to --drafter {given}",
                "use it with --drafter layerskip",
            ),
            (
                "draft_threshold",
                self.draft_threshold > 0 and not {*self.drafters} & {*WITH_PROBABILITIES},
                f"--draft-threshold does not apply to --drafter {given}: its tokens have no probabilities",
                f"drafters that have them: {', '.join(WITH_PROBABILITIES)}",
            ),
            (
                "vocab_method",
                self.vocab_method != "auto" and "model" not in self.drafters,
                f"--vocab-method does not apply to --drafter {given}",
                "it is for drafts of another vocabulary",
            ),
        )
        for name, unused, message, hint in checks:
            if unused and name not in inherited:
                raise UsageError(message, hint)


_NAMED_OTHERWISE = {
    "pairs": "--pair",
    "domains": "--domain",
    "temperatures": "--temperature",
    "drafters": "--drafter",
    "repetitions": "--reps",
}
_FLAG = re.compile(r"--[a-z]+(?:-[a-z]+)*")


def _flag_of(field: str) -> str:
    return _NAMED_OTHERWISE.get(field, "--" + field.replace("_", "-"))


def _field_of(flag: str) -> str:
    named = {other: field for field, other in _NAMED_OTHERWISE.items()}
    return named.get(flag, flag.removeprefix("--").replace("-", "_"))


def _flattened(value: object, read: Callable[[str | int | float], tuple[object, ...]]) -> tuple[object, ...]:
    """A list of numbers and ranges, or one of these, as numbers."""
    is_list = isinstance(value, list | tuple)
    found: list[object] = []
    for index, item in enumerate(value if isinstance(value, list | tuple) else (value,)):
        place = index if is_list else None
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise PydanticCustomError("not_a_number", "is not a number", {"item": place})
        try:
            found += read(item)
        except UsageError as error:
            raise _refused(error, place) from error
    return tuple(found)


def _k_item(item: str | int | float) -> tuple[object, ...]:
    numbers: tuple[object, ...] = parse_numbers(item, name="--k") if isinstance(item, str) else (item,)
    for number in numbers:
        if isinstance(number, float):
            raise UsageError(f"--k {number} is not a whole number", "k is the number of tokens drafted per round")
        if isinstance(number, int) and number < 0:
            raise UsageError(f"--k {_shown(number, None)} is negative", "k is the number of tokens drafted per round")
        if number == 0:
            raise UsageError("--k 0 drafts nothing", "leave 0 out: every sweep measures plain decoding anyway")
    return numbers


def _temperature_item(item: str | int | float) -> tuple[float, ...]:
    numbers = parse_decimals(item, name="--temperature") if isinstance(item, str) else (item,)
    for number in numbers:
        if not 0 <= number <= sys.float_info.max:
            raise UsageError(
                f"--temperature {_shown(number, None)} is not a number >= 0", "0 is greedy, 1 is the model's own"
            )
        check_temperature(number, "--temperature")
    return tuple(abs(float(number)) for number in numbers)  # -0.0 is 0


def _refused(error: UsageError, item: int | None = None) -> PydanticCustomError:
    """The error on its way through pydantic, which adds the field."""
    return PydanticCustomError("refused", "{message}", {"message": error.message, "hint": error.hint, "item": item})


def _place(error: ErrorDetails) -> tuple[int | str, ...]:
    """The field, and the item of its list; nothing where values don't fit together."""
    item = error.get("ctx", {}).get("item")
    return error["loc"] if item is None else (*error["loc"], item)


def _told(error: ErrorDetails, origin: _Origin) -> UsageError:
    """In the house's words, with the value as it was written."""
    at, details = _place(error), error.get("ctx", {})
    if error["type"] == "refused":
        return origin.refusal(details["message"], details["hint"], at)
    if not at:  # a key that can't be encoded: half of a surrogate pair
        return origin.refusal("the name of a setting is not text", "write it in plain letters")
    if error["type"] == "extra_forbidden":
        return origin.refusal(f"unknown key {quoted(str(at[0]))}", _known_keys(str(at[0])), at)
    flag, value = _flag_of(str(at[0])), error["input"]
    if details.get("item") is not None:
        value = value[details["item"]]
    if value is None:
        return origin.refusal(f"{flag} has no value", "give it one, or leave it out", at)
    complaint, hint = _complaint(error["type"], details, value, error["msg"])
    return origin.refusal(f"{flag} {_shown(value, origin.entry(at))} {complaint}", hint, at)


def _complaint(kind: str, details: Mapping[str, Any], value: object, otherwise: str) -> tuple[str, str]:
    """What is wrong with a value, as the end of a sentence, and what to do."""
    if isinstance(value, bool):
        what = "a choice" if kind == "literal_error" else "text" if kind == "string_type" else "a number"
        return f"is not {what} but a boolean", "YAML reads yes, no, on, off as true and false: put text in quotes"
    match kind:
        case "literal_error":
            choices = re.findall(r"'([^']*)'", details["expected"])
            return "is not a choice", f"{_closest(str(value), choices)}choices: {', '.join(choices)}"
        case "greater_than_equal":
            return f"is less than {details['ge']:g}", f"give {details['ge']:g} or more"
        case "greater_than":
            return f"is not more than {details['gt']:g}", f"give more than {details['gt']:g}"
        case "less_than_equal":
            return f"is more than {details['le']:g}", f"give {details['le']:g} or less"
        case "less_than":
            return "is too large", f"give less than {details['lt']}"
        case "string_type":
            return "is not text", "put it in quotes"
        case "string_too_short":
            return "is empty", "give it a name, or leave it out"
        case "bool_type":
            return "is neither true nor false", "write true or false"
        case "int_type" | "int_from_float":
            return "is not a whole number", "write digits only, without quotes"
        case "float_type" | "finite_number" | "not_a_number":
            return "is not a number", "write digits, such as 4 or 0.8, without quotes"
        case _:
            return f"can't be meant: {otherwise}", "see the documentation of this setting"


def _shown(value: object, entry: Entry | None) -> str:
    """As it was written, if that is known, and if it can be shown."""
    if isinstance(value, list | tuple | dict):
        return "(a mapping)" if isinstance(value, dict) else "(a list)"
    written = entry.text if entry is not None and entry.text is not None and entry.value == value else str(value)
    plain = not isinstance(value, str) and written.isprintable() and len(written) <= 60
    return written if plain else quoted(written)


def _known_keys(key: str) -> str:
    known = list(SweepConfig.model_fields)
    meant = _field_of("--" + key.lower().replace("_", "-"))
    return f"{_closest(meant, known)}keys: {', '.join(known)}"


def _closest(word: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {matches[0]}? " if matches else ""


def _beside(path: Path, given: str) -> str:
    """A path that exists beside the configuration file, seen from here; anything else as it is given."""
    candidate = os.path.join(path.parent, os.path.expanduser(given))
    return candidate if given and os.path.exists(candidate) else given
