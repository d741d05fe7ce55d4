"""``specprof run``: decode prompts with and without speculation, and say what it did."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specprof import __version__
from specprof.commands import narration, options
from specprof.commands.chosen import check_models_are_here, chosen_k, chosen_pair, chosen_prompts, chosen_threads
from specprof.commands.help import MEASURING, RESULTS
from specprof.commands.narration import LOG, wants_color
from specprof.commands.options import option
from specprof.commands.output import print_table, typed, write_document
from specprof.commands.run_document import run_document
from specprof.commands.sinks import JsonLines, Sink, TextStream, tee
from specprof.data.prompts import Prompt
from specprof.errors import CorrectnessError, UsageError
from specprof.experiments.config import RunConfig
from specprof.experiments.store import RunFile, check_outputs, new_run_id
from specprof.profiling.host_profile import profile_format
from specprof.reproducibility import make_deterministic

if TYPE_CHECKING:
    from specprof.experiments.arms import Arms
    from specprof.experiments.run import EncodedPrompt
    from specprof.profiling.comparison import Comparison
    from specprof.profiling.cost_model import CostCurve

COSTS_SCHEMA = "specprof.costs/1"


def run(
    context: typer.Context,
    pair: options.Pair = None,
    draft: options.Draft = None,
    target: options.Target = None,
    dtype: options.Dtype = None,
    revision: options.Revision = None,
    random_weights: options.RandomWeights = False,
    scale_layers: options.ScaleLayers = None,
    offline: options.Offline = False,
    trust_remote_code: options.TrustRemoteCode = False,
    k: Annotated[str, options.K] = "4",
    k_max: options.KMax = None,
    drafter: options.Drafter = "model",
    draft_layers: options.DraftLayers = None,
    draft_threshold: options.DraftThreshold = 0.0,
    vocab_method: options.VocabMethod = "auto",
    synthetic_acceptance: options.SyntheticAcceptance = None,
    prompt: options.PromptTexts = None,
    prompts: options.PromptFile = None,
    domain: options.Domain = None,
    num_prompts: options.NumPrompts = None,
    max_new_tokens: options.MaxNewTokens = 96,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    ignore_eos: options.IgnoreEos = False,
    chat_template: options.ChatTemplate = "auto",
    warmup: options.Warmup = 1,
    reps: options.Reps = 3,
    no_baseline: Annotated[
        bool, option(MEASURING, "--no-baseline", help="Skip the autoregressive arm, and with it the speedup.")
    ] = False,
    no_cost_curve: Annotated[
        bool, option(MEASURING, "--no-cost-curve", help="Don't measure first what rounds of each K cost.")
    ] = False,
    cost_only: Annotated[
        bool,
        option(MEASURING, "--cost-only", help="Measure what rounds of each K cost, say what would pay, and stop."),
    ] = False,
    detail: options.Detail = False,
    deterministic: options.Deterministic = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    forward: options.Forward = "auto",
    engine: options.Engine = "auto",
    compile: options.Compile = False,
    threads: options.Threads = None,
    as_json: options.Json = False,
    as_jsonl: Annotated[bool, option(RESULTS, "--jsonl", help="Print events as they happen, one JSON a line.")] = False,
    output: options.Output = None,
    results_dir: options.ResultsDir = Path("results"),
    no_save: options.NoSave = False,
    trace: Annotated[
        Path | None,
        option(
            RESULTS, "--trace", metavar="FILE", help="Write a trace for ui.perfetto.dev as well; .gz compresses it."
        ),
    ] = None,
    host_profile: Annotated[
        Path | None,
        option(
            RESULTS,
            "--host-profile",
            metavar="FILE",
            help="Decode again, untimed, watched by py-spy: .json is for speedscope.app, .svg a flame graph.",
        ),
    ] = None,
    color: options.Color = "auto",
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Decode prompts with and without speculation, and compare.

    Plain and speculative decoding take turns prompt by prompt. With nothing given: the packaged pair tiny_dev on
    packaged prompts. Every event is kept in a file that `specprof results`, `explain`, `report` and `compare` read.

    Examples:
        # the packaged pair on packaged prompts
        specprof run

        # a pair from the Hugging Face Hub, four tokens drafted per round
        specprof run --pair gpt2_dev --k 4

        # two models and prompts of your own, sampling
        specprof run --draft ./small --target ./large --prompts mine.jsonl \\
            --temperature 0.8

        # what would pay on this machine, without decoding the prompts
        specprof run --k 8 --cost-only

        # the speedup alone, for a script
        specprof run --json | jq .speedup_decode.value
    """
    narration.set_up(detailed=verbose >= 2, quiet=quiet, as_json=log_json)
    if as_json and as_jsonl:
        raise UsageError("--json and --jsonl exclude each other", "one document, or one event a line")
    measuring = {
        "--jsonl": as_jsonl,
        "--trace": trace,
        "--host-profile": host_profile,
        "--no-cost-curve": no_cost_curve,
    }
    other = next((flag for flag, given in measuring.items() if given), None)
    if cost_only and other is not None:
        raise UsageError(f"--cost-only and {other} exclude each other", "leave one of them out")
    wants_color(color, sys.stdout)
    config = RunConfig(
        pair=chosen_pair(pair, draft, target, dtype, drafter=drafter),
        k=chosen_k(k),
        k_max=k_max,
        drafter=drafter,
        draft_layers=draft_layers,
        draft_threshold=draft_threshold,
        vocab_method=vocab_method,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        warmup=warmup,
        repetitions=reps,
        baseline=not no_baseline,
        device=device,
        device_map=device_map,
        forward=forward,
        engine=engine,
        compile=compile,
        ignore_eos=ignore_eos,
        detail=detail or trace is not None,
        deterministic=deterministic,
        chat_template=chat_template,
        random_weights=random_weights,
        scale_layers=scale_layers,
        synthetic_acceptance=synthetic_acceptance,
        revision=revision,
        offline=offline,
        trust_remote_code=trust_remote_code,
    )
    if host_profile is not None:
        profile_format(host_profile)
    threads = None if threads is None else chosen_threads(threads)
    texts = chosen_prompts(prompt or [], prompts, domain or [], num_prompts, packaged=options.DEFAULT_NUM_PROMPTS)
    run_id = new_run_id()
    file = None if no_save or cost_only else RunFile(results_dir, run_id)
    check_outputs((output, trace, host_profile), used=(prompts,))
    check_models_are_here(config)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)

    # What needs PyTorch or numpy is imported once everything that can be refused has been.
    from specprof.experiments.run import measure
    from specprof.experiments.saved_runs import differences
    from specprof.profiling.comparison import compare
    from specprof.profiling.events import PromptEnded, RunEnded, RunStarted
    from specprof.profiling.metrics import fold

    bars = narration.stderr_is_terminal() and not (quiet or log_json)
    try:
        arms, encoded = _ready(config, texts, bars=bars)
        curve = None if no_cost_curve else _surveyed(config, arms, encoded)
    except KeyboardInterrupt:
        LOG.warning("interrupted before anything was compared")
        raise
    if cost_only:
        _report_costs(config, arms, curve, output, as_json=as_json, color=color)
        return
    total = config.repetitions * len(encoded) * config.num_arms
    lines = JsonLines(sys.stdout) if as_jsonl else None
    ended: list[RunEnded] = []
    with ExitStack() as stack:
        sinks: list[Sink] = []
        if file is not None:
            sinks.append(stack.enter_context(file))
        if lines is not None:
            sinks.append(lines)
        if verbose and not log_json:
            sinks.append(TextStream(arms.tokenizer, arms.speculative.label, color=wants_color(color, sys.stderr)))
        if trace is not None:
            from specprof.profiling.trace import trace_file

            kept = None if file is None else file.path
            sinks.append(stack.enter_context(trace_file(trace, decode=arms.tokenizer.decode, kept=kept)))
        bar = stack.enter_context(narration.progress("measuring", total, shown=bars and not verbose))
        sinks.append(lambda event: bar.advance() if isinstance(event, PromptEnded) else None)
        sinks.append(lambda event: ended.append(event) if isinstance(event, RunEnded) else None)
        try:
            events = tee(measure(config, arms, encoded, run_id, curve, typed(context)), sinks)
            started = next(events)
            assert isinstance(started, RunStarted)
            results = []
            for result in fold(events):
                results.append(result)
                LOG.debug("%s, repetition %d: %s", result.prompt_id, result.repetition, result.summary())
        except KeyboardInterrupt:
            finished = "" if file is None or not file.path.exists() else f"; what was finished is in {file.path}"
            LOG.warning("interrupted%s", finished)
            raise

    comparison = compare(
        results,
        temperature=config.temperature,
        domains={p.prompt.prompt_id: p.prompt.domain for p in encoded},
        curve=curve,
        differences=differences(ended[0]),
        seed=config.seed,
    )
    document = run_document(
        started,
        comparison,
        pair=config.pair.name,
        caveats=config.caveats,
        version=__version__,
        events_file=None if file is None else file.path,
    )
    if output is not None:
        write_document(output, document, kept=document["events_file"])
    if as_json:
        print(json.dumps(document, indent=2))
    elif not as_jsonl:
        _print_table(comparison, config, arms, color)
    if file is not None:
        LOG.info("events: %s", file.path)
    if trace is not None:
        LOG.info("trace: %s (open it at ui.perfetto.dev)", trace)
    if host_profile is not None:
        sys.stdout.flush()  # what was measured is out before anything else is tried
        _profile_host(host_profile, config, arms, encoded)
    if lines is not None and lines.failure is not None:
        raise lines.failure
    _check_output(comparison)


def _profile_host(path: Path, config: RunConfig, arms: Arms, prompts: list[EncodedPrompt]) -> None:
    """Decode everything again while py-spy watches; where it can't, the measurement stands."""
    from specprof.experiments.run import decode_for
    from specprof.profiling.host_profile import LEAST_SECONDS, host_profile

    LOG.info("host profile: decoding again, untimed")
    with host_profile(path) as profile:
        decode_for(LEAST_SECONDS, config, arms, prompts)
    if profile.problem is not None:
        LOG.warning("no host profile: %s; %s", *profile.problem)
        return
    if profile.note is not None:
        LOG.info("note: %s", profile.note)
    LOG.info("host profile: %s", path)


def _check_output(comparison: Comparison) -> None:
    """The last word: whatever was measured and kept, this is not the target's output.

    Raises:
        CorrectnessError: a greedy text differs from plain decoding's by more than rounding.
    """
    match = comparison.output_matches_baseline
    if match is None or not match.failures:
        return
    first = match.failures[0]
    gap = ""
    if first.gap is not None and first.tolerance is not None:
        gap = f": the logits of the two tokens are {first.gap:.3g} apart, and rounding explains {first.tolerance:.3g}"
    raise CorrectnessError(
        f"speculation changed the output of {len(match.failures)} of {match.num_prompts} prompts, "
        f"{first.prompt_id} at token {first.position + 1}{gap}",
        "please report it with the pair and the command; --forward hf tells whether this program's own forward is the "
        "cause",
    )


def _ready(config: RunConfig, texts: list[Prompt], *, bars: bool) -> tuple[Arms, list[EncodedPrompt]]:
    """Models loaded and warm, prompts encoded."""
    LOG.info("loading %s", config.pair.name)
    from specprof.experiments.arms import load_arms
    from specprof.experiments.run import choose_method, encode_prompts, warm_up, warm_up_steps

    if config.deterministic:
        make_deterministic()
    arms = load_arms(config)
    for note in arms.notes:
        LOG.info("note: %s", note)
    prompts = encode_prompts(config, arms, texts)
    arms, finding = choose_method(config, arms, prompts)
    if finding is not None:
        LOG.info("note: %s", finding)
    how = "2 arms, interleaved" if config.baseline else "1 arm"
    LOG.info("prompts: %d, repetitions: %d, %s", len(prompts), config.repetitions, how)
    with narration.progress("warm-up", warm_up_steps(config, prompts), shown=bars) as bar:
        warm_up(config, arms, prompts, bar.advance)
    return arms, prompts


def _surveyed(config: RunConfig, arms: Arms, prompts: list[EncodedPrompt]) -> CostCurve | None:
    from specprof.experiments.cost_survey import survey_costs

    return survey_costs(config, arms, prompts)


def _report_costs(
    config: RunConfig, arms: Arms, curve: CostCurve | None, output: Path | None, *, as_json: bool, color: str
) -> None:
    """What ``--cost-only`` prints.

    Raises:
        UsageError: nothing is drafted.
    """
    if curve is None:
        raise UsageError("there are no costs of drafting to measure", "give --k 1 or more")
    from specprof.profiling.machine import describe
    from specprof.reports import tables

    document = {
        "schema": COSTS_SCHEMA,
        "specprof_version": __version__,
        "pair": config.pair.name,
        "caveats": list(config.caveats),
        "engine": arms.engine_used,
        "cost_curve": curve.to_dict(),
        "by_k": curve.by_k(),
        "config": config.to_dict() | {"models": arms.describe(config.pair), **arms.describe_engine()},
        "machine": describe(),
    }
    if output is not None:
        write_document(output, document)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        title, subtitle = _titles(config, arms)
        print_table(tables.render_costs(curve, title=title, subtitle=subtitle), color)


def _print_table(comparison: Comparison, config: RunConfig, arms: Arms, color: str) -> None:
    from specprof.reports import tables

    title, subtitle = _titles(config, arms)
    print_table(tables.render(comparison, title=title, subtitle=subtitle), color)


def _titles(config: RunConfig, arms: Arms) -> tuple[str, str]:
    from specprof.profiling.metrics import title_of

    layers = None if config.draft_layers is None else f"{config.draft_layers} of {arms.target.num_layers}"
    title = title_of(
        config.pair.name,
        config.temperature,
        config.top_k,
        config.top_p,
        k=f"auto (up to {config.longest_draft})" if config.k == "auto" else config.k,
        drafter=config.drafter,
        draft_layers=layers,
        vocab_method=arms.vocab_method,
    )
    dtype = str(arms.target.dtype).removeprefix("torch.")
    subtitle = f"{arms.target.name} on {arms.target.device}, {dtype}, {arms.forward_used} forward"
    if arms.engine_used != "eager":
        subtitle += f", {arms.engine_used} engine"
    return title, "; ".join((subtitle, *config.caveats))
