"""Every headline number of a run from its raw lines, by the definitions of docs/metrics.md and the papers.

With json and numpy alone: nothing here knows the code that it checks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Figures = dict[str, Any]
Text = dict[str, Any]
"""One generation: ``prompt_id``, ``decoder``, ``repetition``, ``tokens``, ``rounds`` (dictionaries), ``ttft``, ..."""

PHASES = ("draft", "verify", "sample", "overhead")


def texts_of_run(lines: Iterable[str]) -> list[Text]:
    """From the lines of an events file: what was finished, in order."""
    begun: dict[tuple[Any, ...], Text] = {}
    finished = []
    for line in lines:
        event = json.loads(line)
        key = tuple(event.get(name) for name in ("prompt_id", "decoder", "repetition"))
        match event["event"]:
            case "Prefilled":
                seconds = sum(event[f"{part}_seconds"] for part in ("target", "draft", "overhead"))
                begun[key] = dict(zip(("prompt_id", "decoder", "repetition"), key, strict=True)) | {
                    "tokens": [event["first_token"]], "rounds": [], "ttft": seconds,
                    "memory": [event.get("peak_memory_bytes", 0)],
                }  # fmt: skip
            case "Round":
                begun[key]["rounds"].append(event)
                begun[key]["tokens"] += event["emitted_tokens"]
            case "PromptEnded":
                text = begun.pop(key)
                text["memory"].append(event["peak_memory_bytes"])
                text |= {name: event.get(name) for name in ("energy_joules", "draft_matches", "finish_reason")}
                finished.append(text)
    return finished


def texts_of_sweep(lines: Iterable[str], k: int | str) -> list[Text]:
    """From the lines of a sweep's store: what it measured of K and of plain decoding; controls repeat the latter."""
    found = []
    for line in lines:
        record = json.loads(line)
        if record["kind"] != "generation" or record["control"] or record["K"] not in (0, k):
            continue
        columns = record["rounds"]
        rounds = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        for round in rounds:
            for name, nothing in (("draft_tokens", ()), ("num_accepted", 0), ("draft_seconds", 0.0), ("cut", False)):
                round.setdefault(name, nothing)
        mb = 2**20
        found.append(
            {name: record[name] for name in ("prompt_id", "decoder", "repetition", "energy_joules", "domain")}
            | {
                "tokens": record["generated_ids"],
                "rounds": rounds,
                "ttft": record["time_to_first_token"],
                "memory": [record["prefill_peak_memory_mb"] * mb, record["peak_memory_mb"] * mb],
                "sequence": record["sequence"],
            }
        )
    return sorted(found, key=lambda text: text["sequence"])


def figures(texts: Sequence[Text], domain_of: Mapping[str, str], *, greedy: bool, curve: Any = None) -> Figures:
    """The document's sections by the same keys: what there is to compute of them."""
    plain = [text for text in texts if text["decoder"] == "AR"]
    drafted = [text for text in texts if text["decoder"] != "AR"]
    accepted = acceptance(drafted, greedy=greedy)
    predicted = predictions(drafted, curve, accepted["alpha"]) if curve else []
    found: Figures = {
        "num_prompts": len({text["prompt_id"] for text in texts}),
        "num_repetitions": len({text["repetition"] for text in texts}),
        "speedup_decode": speedup(plain, drafted, decode),
        "speedup_e2e": speedup(plain, drafted, end_to_end),
        "acceptance": accepted,
        "baseline": arm(plain),
        "speculative": arm(drafted),
        "costs": costs(plain, drafted, predicted),
        "predictions": predicted,
        "output_matches_baseline": output_match(plain, drafted) if greedy else None,
        "domains": {},
    }
    for domain in dict.fromkeys(domain_of[text["prompt_id"]] for text in texts):
        there, here = ([t for t in some if domain_of[t["prompt_id"]] == domain] for some in (plain, drafted))
        found["domains"][domain] = {
            "speedup_decode": speedup(there, here, decode),
            "acceptance": acceptance(here, greedy=greedy),
        }
    return found


# Speed


def seconds_of(round: Mapping[str, Any]) -> float:
    return float(sum(round[f"{phase}_seconds"] for phase in PHASES))


def decode(text: Text) -> tuple[float, int]:
    return sum(map(seconds_of, text["rounds"])), len(text["tokens"]) - 1


def end_to_end(text: Text) -> tuple[float, int]:
    return text["ttft"] + decode(text)[0], len(text["tokens"])


def bill(texts: Sequence[Text], timing: Callable[[Text], tuple[float, int]]) -> dict[str, tuple[float, float]]:
    """By prompt: its median seconds per token, times its mean number of tokens; and that number."""
    by_prompt = defaultdict(list)
    for text in texts:
        seconds, tokens = timing(text)
        if tokens:
            by_prompt[text["prompt_id"]].append((seconds / tokens, tokens))
    found = {}
    for prompt, repetitions in by_prompt.items():
        rates, tokens = np.array(repetitions).T
        found[prompt] = (float(np.median(rates) * tokens.mean()), float(tokens.mean()))
    return found


def paired(
    plain: Sequence[Text], drafted: Sequence[Text], timing: Callable[[Text], tuple[float, int]]
) -> np.ndarray[Any, Any]:
    """``[prompts, 4]``: plain seconds and tokens, speculative seconds and tokens."""
    one, other = bill(plain, timing), bill(drafted, timing)
    return np.array([(*one[prompt], *other[prompt]) for prompt in one if prompt in other])


def speedup(plain: Sequence[Text], drafted: Sequence[Text], timing: Callable[[Text], tuple[float, int]]) -> Figures:
    pairs = paired(plain, drafted, timing)
    a, b, c, d = pairs.sum(axis=0)
    return {"value": (a / b) / (c / d), "n_prompts": len(pairs)}


def tokens_per_second(texts: Sequence[Text], timing: Callable[[Text], tuple[float, int]]) -> float:
    seconds, tokens = np.array(list(bill(texts, timing).values())).sum(axis=0)
    return float(tokens / seconds)


# One arm


def arm(texts: Sequence[Text]) -> Figures:
    rounds = [round for text in texts for round in text["rounds"]]
    latencies = np.array([seconds_of(round) for round in rounds])
    num_emitted = sum(len(round["emitted_tokens"]) for round in rounds)
    joules = [text["energy_joules"] for text in texts]
    num_tokens = sum(len(text["tokens"]) for text in texts)
    assert num_emitted == num_tokens - len(texts), "all tokens but the first of each text come from rounds"
    found: Figures = {
        "decoder": texts[0]["decoder"],
        "num_prompts": len({text["prompt_id"] for text in texts}),
        "num_generations": len(texts),
        "num_tokens": num_tokens,
        "num_rounds": len(rounds),
        "tokens_per_second": tokens_per_second(texts, decode),
        "tokens_per_second_e2e": tokens_per_second(texts, end_to_end),
        "ttft_seconds": np.median([text["ttft"] for text in texts]),
        "tpot_seconds": np.median([s / n for s, n in map(decode, texts) if n]),
        "peak_memory_bytes": max(max(text["memory"]) for text in texts) or None,
        "prefill_peak_memory_bytes": max(text["memory"][0] for text in texts) or None,
        "repetition": np.mean([ends_in_a_loop(text["tokens"]) for text in texts]),
        "energy_joules_per_token": None if None in joules else sum(joules) / num_tokens,
        "phases": {},
    }
    for q in (50, 95, 99):
        found[f"latency_p{q}"] = linear_percentile(latencies, q)
    for phase in PHASES:
        seconds = sum(round[f"{phase}_seconds"] for round in rounds)
        found["phases"][phase] = {
            "seconds": seconds,
            "share": seconds / latencies.sum(),
            "seconds_per_round": seconds / len(rounds),
            "seconds_per_token": seconds / num_emitted,
        }
    return found


def linear_percentile(values: np.ndarray[Any, Any], q: float) -> float:
    """Between neighbours on the line through them."""
    ordered = np.sort(values)
    place = q / 100 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


def ends_in_a_loop(tokens: Sequence[int]) -> bool:
    for period in range(1, 33):
        covered = period
        while covered < len(tokens) and tokens[-1 - covered] == tokens[period - 1 - covered]:
            covered += 1
        covered = min(covered, len(tokens)) if covered > period else 0
        if covered >= 64 or (covered >= max(16, len(tokens) / 2) and covered >= 3 * period):
            return True
    return False


# Acceptance


def complete(texts: Sequence[Text]) -> list[Any]:
    return [round for text in texts for round in text["rounds"] if not round["cut"]]


def acceptance(texts: Sequence[Text], *, greedy: bool) -> Figures:
    not_cut = complete(texts)
    rounds = [round for round in not_cut if round["draft_tokens"]]
    accepted = np.array([round["num_accepted"] for round in rounds])
    drafted = np.array([len(round["draft_tokens"]) for round in rounds])
    longest = int(drafted.max(initial=0))
    overlaps: list[float] = []
    for round, a, k in zip(rounds, accepted, drafted, strict=True):
        judged = min(a + 1, k)
        overlaps += [i < a for i in range(judged)] if greedy else round["alpha"][:judged]
    return {
        "num_spec_steps": len(rounds),
        "num_draft_tokens": drafted.sum(),
        "num_accepted_draft_tokens": accepted.sum(),
        "num_spec_tokens": longest,
        "draft_acceptance_rate": accepted.sum() / drafted.sum(),
        "mean_acceptance_length": 1 + accepted.mean(),
        "accepted_per_step": accepted.mean(),
        "acceptance_rate_per_pos": [(accepted > i).mean() for i in range(longest)],
        "conditional_acceptance_rate": [
            (accepted > i).sum() / reached if (reached := ((accepted >= i) & (drafted > i)).sum()) else None
            for i in range(longest)
        ],
        "acceptance_histogram": [(accepted == j).sum() for j in range(longest + 1)],
        "draft_length_histogram": [
            sum(len(round["draft_tokens"]) == length for round in not_cut) for length in range(longest + 1)
        ],
        "alpha": np.mean(overlaps),
        "num_cut_rounds": sum(len(text["rounds"]) for text in texts) - len(not_cut),
        "num_empty_rounds": len(not_cut) - len(rounds),
    }


def gains(rounds: Sequence[Any]) -> list[float]:
    """At each position: accepted there, over rounds that got so far and were asked for a token there."""
    asked = [max(round.get("k") or 0, len(round["draft_tokens"])) for round in rounds]
    accepted = [round["num_accepted"] for round in rounds]
    pairs = list(zip(accepted, asked, strict=True))
    found = []
    for i in range(max(asked)):
        tried = sum(a >= i and k > i for a, k in pairs)
        if not tried:
            break
        found.append(sum(a > i for a in accepted) / tried)
    return found


# Costs


def costs(plain: Sequence[Text], drafted: Sequence[Text], predicted: Sequence[Figures]) -> Figures:
    steps = [round for text in plain for round in text["rounds"]]
    unit = np.median([step["verify_seconds"] for step in steps])
    b = np.median([step["sample_seconds"] + step["overhead_seconds"] for step in steps]) / unit
    rounds = complete(drafted)
    lengths = np.array([len(round["draft_tokens"]) for round in rounds])

    def typical(*phases: str) -> Any:
        seconds = np.array([sum(round[f"{phase}_seconds"] for phase in phases) for round in rounds])
        return sum((lengths == n).mean() * np.median(seconds[lengths == n]) for n in set(lengths.tolist())) / unit

    k, tau = lengths.mean(), 1 + np.mean([round["num_accepted"] for round in rounds])
    c, v, o = typical("draft") / k, typical("verify"), typical("sample", "overhead")
    needed = k * c + v + o
    best_k, best = max(((p["k"], p["speedup"]) for p in predicted), key=lambda pair: pair[1], default=(0, 1.0))
    if not predicted:
        verify = {0: 1.0} | {
            n: np.median([round["verify_seconds"] for round in rounds if len(round["draft_tokens"]) == n]) / unit
            for n in set(lengths.tolist())
            if n and (np.sum(lengths == n) >= 5 or n == lengths.max())
        }
        for n, _ in enumerate(rates := gains(rounds), start=1):
            v_n = np.interp(n, sorted(verify), [verify[m] for m in sorted(verify)])
            candidate = (1 + np.cumprod(rates[:n]).sum()) / (n * c + v_n + o) * (1 + b)
            if candidate > best:
                best_k, best = n, candidate
    if best <= 1:
        best_k, best = 0, 1.0
    return {
        "target_step_seconds": unit,
        "draft_tokens_per_round": k,
        "tokens_per_round": tau,
        "draft_cost_ratio": c,
        "verify_ratio": v,
        "overhead_ratio": o,
        "ar_overhead_ratio": b,
        "speedup_predicted": tau / needed,
        "speedup_predicted_with_ar_overhead": tau / needed * (1 + b),
        "break_even_tau": needed,
        "break_even_alpha": break_even_alpha(needed, int(k)) if k == lengths.max() else None,
        "best_k": best_k,
        "best_k_speedup_predicted": best,
    }


def break_even_alpha(tau: float, k: int) -> float | None:
    """The root of 1 + a + ... + a^k = tau."""
    if tau <= 1:
        return 0.0
    roots = np.roots([1.0] * k + [1.0 - tau])
    real = roots[np.abs(roots.imag) < 1e-9].real
    return next((float(root) for root in real if 0 <= root <= 1), None)


def predictions(texts: Sequence[Text], curve: Mapping[str, Sequence[float]], alpha: float | None) -> list[Figures]:
    """From surveyed costs: for greedy texts tau is counted on the texts, with what the draft would have proposed."""
    rounds = complete(texts)
    step = curve["verify_seconds"][0] + curve["rest_seconds"][0]
    matches = [text["draft_matches"] for text in texts]
    replayed, in_full = None not in matches, all(len(r["draft_tokens"]) == r.get("k") for r in rounds)
    found = []
    for k in range(1, len(curve["verify_seconds"])):
        needed = sum(curve[f"{part}_seconds"][k] for part in ("draft", "verify", "rest")) / step
        rates = gains(rounds)
        if not replayed and len(rates) < k:
            break
        tau = replay(matches, k) if replayed else 1 + np.cumprod(rates[:k]).sum()
        alike = sum(alpha**i for i in range(k + 1)) if in_full and alpha is not None else None
        found.append(
            {
                "k": k,
                "tokens_per_round": tau,
                "replayed": replayed,
                "speedup": tau / needed,
                "tokens_per_round_from_alpha": alike,
                "speedup_from_alpha": None if alike is None else alike / needed,
                "break_even_tau": needed,
            }
        )
    return found


def replay(matches: Sequence[Sequence[bool]], k: int) -> float:
    """Tokens per round if each round took the first tokens that match, k at most, and one more."""
    rounds = 0
    for text in matches:
        left = list(text)
        while left:
            drafts = left[: min(k, len(left) - 1)]
            taken = drafts.index(False) if False in drafts else len(drafts)
            left = left[taken + 1 :]
            rounds += 1
    return sum(map(len, matches)) / rounds


# Output


def output_match(plain: Sequence[Text], drafted: Sequence[Text]) -> Figures:
    expected = {(text["prompt_id"], text["repetition"]): text["tokens"] for text in plain}
    differing = {t["prompt_id"] for t in drafted if t["tokens"] != expected[t["prompt_id"], t["repetition"]]}
    prompts = {text["prompt_id"] for text in drafted}
    return {"num_prompts": len(prompts), "num_identical": len(prompts - differing)}
