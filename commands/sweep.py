"""``specprof sweep``: every pair, domain, temperature, drafter and K, resumable."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specprof import __version__
from specprof.commands import narration, options
from specprof.commands.completing import one_of
from specprof.commands.exit_codes import SOME_FAILED
from specprof.commands.help import MESSAGES, PROMPTS, SWEEP
from specprof.commands.narration import LOG, wants_color
from specprof.commands.options import defaulting, option, several
from specprof.commands.output import WIDEST, print_table, typed, write_document
from specprof.data.prompts import Prompt, PromptDataset, builtin
from specprof.errors import ResourceError, UsageError
from specprof.experiments.config import NO_GRAPHS
from specprof.experiments.store import check_outputs, new_run_id

if TYPE_CHECKING:
    from specprof.experiments.executors import Executor
    from specprof.experiments.matrix import Matrix
    from specprof.experiments.plan import Plan
    from specprof.experiments.records import Session
    from specprof.experiments.remaining import Remaining
    from specprof.experiments.results import Contents
    from specprof.experiments.sweep import Policy
    from specprof.experiments.sweep_config import SweepConfig

SCHEMA = "specprof.sweep/1"
EXECUTORS = ("local", "ray")


def sweep(
    context: typer.Context,
    config_file: Annotated[
        Path | None, option(SWEEP, "-c", "--config", metavar="FILE", help="A YAML file; flags win over it.")
    ] = None,
    pair: Annotated[
        list[str] | None, several(options.PAIR, "tiny_dev", metavar="PAIR,...", help="Pairs, as for run.")
    ] = None,
    draft: options.Draft = None,
    target: options.Target = None,
    dtype: options.Dtype = None,
    random_weights: options.RandomWeights = False,
    scale_layers: options.ScaleLayers = None,
    offline: options.Offline = False,
    trust_remote_code: options.TrustRemoteCode = False,
    k: Annotated[
        list[str] | None,
        several(options.K, "1,2,4,8", metavar="K,...", help="Tokens drafted per round: 1,2,4  1-8  1-16*2  auto."),
    ] = None,
    k_max: options.KMax = None,
    drafter: Annotated[list[str] | None, several(options.DRAFTER, "model", metavar="NAME,...")] = None,
    draft_layers: options.DraftLayers = None,
    draft_threshold: Annotated[float | None, defaulting(options.DRAFT_THRESHOLD, 0)] = None,
    vocab_method: Annotated[str | None, defaulting(options.VOCAB_METHOD, "auto")] = None,
    synthetic_acceptance: options.SyntheticAcceptance = None,
    prompts: Annotated[
        str | None, option(PROMPTS, "--prompts", metavar="FILE", help="Prompts from a JSON, JSONL or text file.")
    ] = None,
    domain: Annotated[
        list[str] | None, several(options.DOMAIN, "all", metavar="NAME,...", help="Domains of the prompts.")
    ] = None,
    num_prompts: Annotated[
        int | None,
        option(PROMPTS, "-n", "--num-prompts", metavar="N", help="At most this many of each domain. [default: 10]"),
    ] = None,
    max_new_tokens: Annotated[int | None, defaulting(options.MAX_NEW_TOKENS, 96)] = None,
    temperature: Annotated[
        list[str] | None,
        several(options.TEMPERATURE, "0", metavar="T,...", help="Temperatures: 0,0.8  0-1+0.25; 0 is greedy."),
    ] = None,
    top_k: Annotated[int | None, defaulting(options.TOP_K, 0)] = None,
    top_p: Annotated[float | None, defaulting(options.TOP_P, 1)] = None,
    seed: Annotated[int | None, defaulting(options.SEED, 0)] = None,
    ignore_eos: options.IgnoreEos = False,
    chat_template: Annotated[str | None, defaulting(options.CHAT_TEMPLATE, "auto")] = None,
    warmup: Annotated[int | None, defaulting(options.WARMUP, 1)] = None,
    reps: Annotated[int | None, defaulting(options.REPS, 3)] = None,
    detail: options.Detail = False,
    deterministic: options.Deterministic = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    forward: Annotated[str | None, defaulting(options.FORWARD, "auto")] = None,
    engine: Annotated[str | None, defaulting(options.ENGINE, "auto")] = None,
    compile: options.Compile = False,
    dry_run: Annotated[
        bool, option(SWEEP, "--dry-run", help="Say what there is to do, what is done and how long it will take.")
    ] = False,
    retry_failed: Annotated[
        bool, option(SWEEP, "--retry-failed", help="Try cells again that failed or were skipped before.")
    ] = False,
    fail_fast: Annotated[bool, option(SWEEP, "--fail-fast", help="Stop at the first cell that fails.")] = False,
    cell_timeout: Annotated[
        float | None,
        option(
            SWEEP,
            "--cell-timeout",
            metavar="SECONDS",
            help="A cell that takes longer to measure has failed. [default: none does]",
        ),
    ] = None,
    order_seed: Annotated[
        int, option(SWEEP, "--order-seed", metavar="N", help="Of the order in which cells take turns.")
    ] = 0,
    executor: Annotated[
        str,
        option(
            SWEEP,
            "--executor",
            metavar="NAME",
            offers=one_of(EXECUTORS),
            help="local (processes of this machine) or ray (a Ray cluster).",
        ),
    ] = "local",
    gpus: Annotated[
        str | None,
        option(SWEEP, "--gpus", metavar="0,1,...", help="--executor local: one worker on each of these GPUs."),
    ] = None,
    workers: Annotated[
        int | None,
        option(
            SWEEP,
            "--workers",
            metavar="N",
            help="--executor ray: how many workers. [default: one per GPU, else per node]",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        option(
            SWEEP,
            "--ray-address",
            metavar="ADDRESS",
            help="--executor ray: the cluster. [default: RAY_ADDRESS, else this machine]",
        ),
    ] = None,
    as_json: options.Json = False,
    output: options.Output = None,
    results_dir: options.ResultsDir = Path("results"),
    color: options.Color = "auto",
    verbose: Annotated[
        bool, option(MESSAGES, "-v", "--verbose", help="Tell details, tracebacks of the workers among them.")
    ] = False,
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Measure a whole matrix: pairs, domains, temperatures and K.

    Results go to RESULTS_DIR/records.jsonl, generation by generation. Run the same command again to go on where
    it was stopped: what is there is not measured again.

    Lists take commas; --k and --temperature also ranges: 1-4, 1-8+2 (steps of 2), 1-16*2 (doubling).

    Examples:
        # four draft lengths on five prompts of each domain
        specprof sweep --pair tiny_dev --k 1,2,4,8 -n 5 --reps 2

        # what a file asks for, what of it is done, how long the rest takes
        specprof sweep --config configs/tiny.yaml --dry-run

        # greedy and sampling, with a draft model and by looking words up
        specprof sweep --k 2,4 --temperature 0,0.8 --drafter model,ngram

        # then: how far it is, and a page of it
        specprof results list
        specprof report results
    """
    narration.set_up(detailed=verbose, quiet=quiet, as_json=log_json)
    wants_color(color, sys.stdout)
    if cell_timeout is not None and not 0 < cell_timeout < float("inf"):
        raise UsageError(f"--cell-timeout {cell_timeout:g} is not a time", "give a number of seconds above 0")
    from specprof.experiments.plan import make_plan
    from specprof.experiments.records import SCHEMA as STORE_SCHEMA
    from specprof.experiments.records import Session
    from specprof.experiments.sweep import Policy
    from specprof.experiments.sweep_config import SweepConfig
    from specprof.profiling import machine

    config = (SweepConfig() if config_file is None else SweepConfig.load(config_file)).with_flags(
        pairs=_joined(pair),
        draft=draft,
        target=target,
        k=_joined(k),
        k_max=k_max,
        domains=_joined(domain),
        temperatures=_joined(temperature),
        drafters=_joined(drafter),
        draft_layers=draft_layers,
        draft_threshold=draft_threshold,
        vocab_method=vocab_method,
        prompts=prompts,
        num_prompts=num_prompts,
        repetitions=reps,
        max_new_tokens=max_new_tokens,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        warmup=warmup,
        dtype=dtype,
        device=device,
        device_map=device_map,
        forward=forward,
        engine=engine,
        compile=compile or None,
        ignore_eos=ignore_eos or None,
        detail=detail or None,
        deterministic=deterministic or None,
        chat_template=chat_template,
        random_weights=random_weights or None,
        scale_layers=scale_layers,
        synthetic_acceptance=synthetic_acceptance,
        trust_remote_code=trust_remote_code or None,
    )
    from specprof.experiments.results import FILE_NAME

    check_outputs((output,), used=(config_file, config.prompts, results_dir / FILE_NAME))
    _check_executor(executor, gpus, workers, ray_address, config)
    here = machine.describe_apart() if executor == "local" else None
    if here is not None and config.device is not None:
        _check_device(config.device, _num_gpus(here))
    if here is not None and config.engine == "graph" and not _num_gpus(here):
        raise UsageError(*NO_GRAPHS)
    chosen = _executor(gpus, workers, ray_address, here)
    shares_pairs = gpus is not None or here is None
    plan = make_plan(
        config,
        _chosen_prompts(config),
        offline=offline,
        order_seed=order_seed,
        split="baseline" if shares_pairs else "pair",
    )
    # Several GPUs or nodes need not be of one class.
    machine_class = None if here is None or shares_pairs else machine.machine_class(here)
    if dry_run:
        _print_plan(plan, config, results_dir, machine_class, retry_failed=retry_failed, as_json=as_json, color=color)
        return
    if not plan.batches:
        raise plan.unavailable[0].error

    session = Session(new_run_id(), STORE_SCHEMA, __version__, _now(), order_seed, typed(context))
    policy = Policy(fail_fast=fail_fast, cell_timeout=cell_timeout)
    bars = narration.stderr_is_terminal() and not (quiet or log_json)
    remaining = _measure(
        plan, chosen, results_dir, machine_class, session, policy, retry_failed=retry_failed, bars=bars
    )
    found = _matrices(plan, results_dir, machine_class)
    document = _document(config, plan, remaining, found, session.session, results_dir)
    if output is not None:
        write_document(output, document, kept=document["results"])
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        from specprof.reports import matrix as report

        print_table(report.render(found), color, piped=WIDEST, widest=1000)
    LOG.info("results: %s", results_dir / "records.jsonl")
    if any(failure.session == session.session for failure in remaining.failures.values()):
        LOG.warning("%s failed; --retry-failed tries again", _cells(len(remaining.failures)))
    if remaining.failures:
        raise typer.Exit(SOME_FAILED)


def _measure(
    plan: Plan,
    executor: Executor,
    results_dir: Path,
    machine_class: str | None,
    session: Session,
    policy: Policy,
    *,
    retry_failed: bool,
    bars: bool,
) -> Remaining:
    """Make what the store lacks, and tell of it.

    Raises:
        ResourceError: the store is being written by another, or can't be written; no worker can be started.
        KeyboardInterrupt: after saying what is kept.
    """
    from specprof.commands.sweep_narration import SweepNarration
    from specprof.experiments.results import ResultStore
    from specprof.experiments.sweep import Sweep

    with ResultStore.open(results_dir) as store:
        for note in store.contents.notes:
            LOG.warning("%s: %s", store.path, note)
        remaining = _remaining(plan, store.contents, machine_class, retry_failed=retry_failed)
        before = remaining.progress()
        LOG.info(
            "sweep: %d cells, %d done; %d of %d generations to make, into %s",
            before.cells, before.cells_done, before.tasks - before.tasks_done, before.tasks, store.path,
        )  # fmt: skip
        if machine_class is not None and _measured_elsewhere(plan, store.contents, machine_class):
            LOG.info(
                "what the same sweep measured on another machine, or with other threads or versions, doesn't count"
            )
        if before.cells_failed:
            LOG.warning("%s failed before; --retry-failed tries again", _cells(before.cells_failed))
        if before.cells_done + before.cells_failed < before.cells:
            store.append(session)
        hashes = {cell.config_hash for cell in plan.cells}
        try:
            with SweepNarration(before, store.contents, hashes, machine_class=machine_class, shown=bars) as watch:
                Sweep(plan, remaining, store, executor, watch, session=session.session, policy=policy).run()
        except KeyboardInterrupt:
            progress = remaining.progress()
            LOG.warning(
                "interrupted; %d of %d generations are done and kept in %s: the same command goes on",
                progress.tasks_done, progress.tasks, store.path,
            )  # fmt: skip
            raise
        finally:
            executor.close()
    return remaining


def _measured_elsewhere(plan: Plan, contents: Contents, machine_class: str) -> bool:
    hashes = {cell.config_hash for cell in plan.cells}
    return any(key.config_hash in hashes and key.machine_class != machine_class for key in contents.generations)


def _cells(number: int) -> str:
    return f"{number} cell" if number == 1 else f"{number} cells"


def _joined(values: list[str] | None) -> str | None:
    """A flag given several times says as much as its values with commas between."""
    return None if values is None else ",".join(values)


def _chosen_prompts(config: SweepConfig) -> list[Prompt]:
    """Prompts of the domains asked for, at most so many of each.

    Raises:
        UsageError: a file that holds no prompts, or none of a domain.
    """
    dataset = builtin() if config.prompts is None else PromptDataset.load(config.prompts)
    chosen = []
    for domain in config.domains or dataset.domains:
        chosen += dataset.get_by_domain(domain)[: config.num_prompts]
    return chosen


def _check_executor(
    name: str, gpus: str | None, workers: int | None, ray_address: str | None, config: SweepConfig
) -> None:
    """Refuse an executor that isn't, and flags of the other one.

    Raises:
        UsageError: says which.
    """
    if name not in EXECUTORS:
        raise UsageError(f"there is no executor {name!r}", f"executors: {', '.join(EXECUTORS)}")
    for flag, value, belongs in (
        ("--workers", workers, "ray"),
        ("--ray-address", ray_address, "ray"),
        ("--gpus", gpus, "local"),
    ):
        if value is not None and name != belongs:
            raise UsageError(f"{flag} does not apply to --executor {name}", f"use it with --executor {belongs}")
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers} is less than 1", "give 1 or more")
    if gpus is not None and config.device is not None and not config.device.startswith("cuda"):
        raise UsageError(f"--gpus and --device {config.device} exclude each other", "leave --device out")


def _check_device(device: str, num_gpus: int) -> None:
    """Refuse before anything is written what no cell could be measured on.

    Raises:
        UsageError: no such kind of device.
        ResourceError: this machine has none of it.
    """
    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not index.isdecimal()):
        raise UsageError(f"there is no device {device!r}", "devices: cpu, cuda, cuda:N, mps")
    if kind == "cuda" and int(index or 0) >= num_gpus:
        raise ResourceError(
            f"there is no device {device}: PyTorch finds {num_gpus} CUDA devices",
            f"use cuda:0 to cuda:{num_gpus - 1}"
            if num_gpus
            else "use --device cpu, or install a CUDA build of torch and check `nvidia-smi`",
        )


def _executor(gpus: str | None, workers: int | None, ray_address: str | None, here: dict[str, Any] | None) -> Executor:
    """Who does the work: Ray, unless it is done here.

    Raises:
        UsageError: what names no GPU.
        ResourceError: Ray is not installed, or there is no such GPU.
    """
    if here is None:
        from specprof.experiments.ray_executor import RayExecutor

        return RayExecutor(workers, address=ray_address)
    from specprof.experiments.executors import LocalExecutor

    return LocalExecutor() if gpus is None else LocalExecutor(_gpu_numbers(gpus, _num_gpus(here)))


def _gpu_numbers(gpus: str, found: int) -> list[int]:
    from specprof.experiments.number_lists import parse_numbers, quoted

    try:
        numbers = [number for number in parse_numbers(gpus, name="--gpus") if isinstance(number, int)]
    except UsageError:
        numbers = []
    if not numbers:
        raise UsageError(f"--gpus {quoted(gpus)} names no GPUs", "name them by number: 0,1 or 0-3")
    if max(numbers) >= found:
        raise ResourceError(
            f"there is no GPU {max(numbers)}: {found} found",
            f"use 0 to {found - 1}" if found else "see `nvidia-smi`, or leave --gpus out",
        )
    return numbers


def _num_gpus(here: dict[str, Any]) -> int:
    return int((here.get("gpu") or {}).get("count") or 0)


def _remaining(plan: Plan, contents: Contents, machine_class: str | None, *, retry_failed: bool) -> Remaining:
    """What a store leaves to do; what failed before is left alone unless it is to be tried again."""
    from specprof.experiments.remaining import Remaining

    remaining = Remaining(plan, contents.generations, machine_class=machine_class)
    if retry_failed:
        return remaining
    for cell in plan.cells:
        for (config_hash, where), failure in contents.failures.items():
            here = machine_class is None or where in (machine_class, "", None)
            if config_hash == cell.config_hash and here and not remaining.is_done(cell):
                remaining.close(cell, failure)
    return remaining


def _print_plan(
    plan: Plan,
    config: SweepConfig,
    results_dir: Path,
    machine_class: str | None,
    *,
    retry_failed: bool,
    as_json: bool,
    color: str,
) -> None:
    from specprof.experiments.estimate import estimate
    from specprof.experiments.results import FILE_NAME, Contents, read_contents
    from specprof.reports import plan as report

    contents = read_contents(results_dir) if (results_dir / FILE_NAME).is_file() else Contents()
    for note in contents.notes:
        LOG.warning("%s: %s", results_dir / FILE_NAME, note)
    remaining = _remaining(plan, contents, machine_class, retry_failed=retry_failed)
    estimates = estimate(plan, remaining, contents.generations.values())
    if as_json:
        print(
            json.dumps(
                report.to_dict(plan, remaining, estimates) | {"config": config.model_dump(mode="json")}, indent=2
            )
        )
    else:
        print_table(report.render(plan, remaining, estimates), color, piped=WIDEST, widest=1000)


def _matrices(plan: Plan, results_dir: Path, machine_class: str | None) -> list[Matrix]:
    """What the store now says about the plan."""
    from specprof.experiments.matrix import chosen, matrices
    from specprof.experiments.results import read_contents

    contents = read_contents(results_dir, with_rounds=True)
    classes = {machine_class} if machine_class else set(contents.machines)
    keys = {task.key(name) for task in plan.tasks for name in classes}
    expected = {cell.config_hash: cell.num_generations for cell in plan.cells}
    found = matrices(chosen(contents, keys), expected, expected=expected)
    return [matrix for matrix in found if matrix.machine_class in {*classes, ""}]


def _document(
    config: SweepConfig,
    plan: Plan,
    remaining: Remaining,
    found: list[Matrix],
    session: str,
    results_dir: Path,
) -> dict[str, Any]:
    from specprof.commands.sweep_narration import describe

    progress = remaining.progress()
    return {
        "schema": SCHEMA,
        "specprof_version": __version__,
        "session": session,
        "results": str(results_dir / "records.jsonl"),
        "config": config.model_dump(mode="json"),
        "num_cells": progress.cells,
        "num_cells_done": progress.cells_done,
        "num_cells_failed": progress.cells_failed,
        "matrices": [matrix.to_dict() for matrix in found],
        "failures": [
            {
                "config_hash": cell.config_hash,
                "cell": describe(cell),
                "reason": remaining.failures[cell.config_hash].reason,
                "message": remaining.failures[cell.config_hash].message,
                "hint": remaining.failures[cell.config_hash].hint,
            }
            for cell in plan.cells
            if not remaining.is_open(cell)
        ],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
