"""``specprof verify``: is the output still the target's?"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

from specprof import __version__
from specprof.commands import narration, options
from specprof.commands.chosen import check_models_are_here, chosen_k, chosen_pair, chosen_prompts
from specprof.commands.narration import LOG, wants_color
from specprof.commands.options import defaulting
from specprof.commands.output import print_table, write_document
from specprof.errors import CorrectnessError, UsageError
from specprof.experiments.config import RunConfig
from specprof.experiments.store import check_outputs
from specprof.reproducibility import make_deterministic

if TYPE_CHECKING:
    from specprof.data.prompts import Prompt
    from specprof.experiments.arms import Arms
    from specprof.profiling.verification import Verification

DEFAULT_NUM_PROMPTS = 24
DEFAULT_REPETITIONS = 2
"""When sampling: some 3,500 tokens of the packaged pair's by each arm."""


def verify(
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
    prompt: options.PromptTexts = None,
    prompts: options.PromptFile = None,
    domain: options.Domain = None,
    num_prompts: Annotated[
        int | None, defaulting(options.NUM_PROMPTS, f"{DEFAULT_NUM_PROMPTS} packaged, all own")
    ] = None,
    max_new_tokens: options.MaxNewTokens = 96,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    ignore_eos: options.IgnoreEos = False,
    chat_template: options.ChatTemplate = "auto",
    reps: Annotated[int | None, defaulting(options.REPS, f"{DEFAULT_REPETITIONS}, greedy 1")] = None,
    deterministic: options.Deterministic = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    forward: options.Forward = "auto",
    engine: options.Engine = "auto",
    compile: options.Compile = False,
    as_json: options.Json = False,
    output: options.Output = None,
    color: options.Color = "auto",
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Test whether the output is still the target's.

    Greedy, both texts are compared token by token. When sampling, every token's law is computed afterwards from the
    whole text, and tokens are tested against their laws; plain decoding is put through the same tests. It says what
    the test would have found: more prompts and --reps find smaller faults. Exit code 6: the output is not the
    target's.

    Examples:
        # the packaged pair, sampling
        specprof verify --temperature 0.8

        # greedy: the texts of both arms, token by token
        specprof verify --temperature 0

        # a pair of your own, more texts, the verdict alone
        specprof verify --draft ./small --target ./large --reps 10 --json \\
            | jq .verdict
    """
    narration.set_up(detailed=False, quiet=quiet, as_json=log_json)
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
        warmup=0,
        repetitions=reps if reps is not None else DEFAULT_REPETITIONS if temperature > 0 else 1,
        device=device,
        device_map=device_map,
        forward=forward,
        engine=engine,
        compile=compile,
        ignore_eos=ignore_eos,
        deterministic=deterministic,
        chat_template=chat_template,
        random_weights=random_weights,
        scale_layers=scale_layers,
        revision=revision,
        offline=offline,
        trust_remote_code=trust_remote_code,
    )
    if config.k == 0:
        raise UsageError("--k 0 drafts nothing: there is no speculation to verify", "give --k 1 or more")
    texts = chosen_prompts(prompt or [], prompts, domain or [], num_prompts, packaged=DEFAULT_NUM_PROMPTS)
    check_outputs((output,), used=(prompts,))
    check_models_are_here(config)

    bars = narration.stderr_is_terminal() and not (quiet or log_json)
    arms, verification = _verified(config, texts, bars=bars)

    from specprof.profiling.machine import describe
    from specprof.reports import verify as report

    document = {
        "schema": report.SCHEMA,
        "specprof_version": __version__,
        "pair": config.pair.name,
        "caveats": list(config.caveats),
        **report.to_dict(verification),
        "config": config.to_dict()
        | {"models": arms.describe(config.pair), "vocab_method": arms.vocab_method, **arms.describe_engine()},
        "machine": describe(),
    }
    if output is not None:
        write_document(output, document)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        print_table(report.render(verification, title=_title(config, arms)), color)
    _judge(verification, report.sentences(verification)[0])


def _verified(config: RunConfig, texts: list[Prompt], *, bars: bool) -> tuple[Arms, Verification]:
    """Models loaded and warm, prompts decoded by both arms and put to the test."""
    LOG.info("loading %s", config.pair.name)
    from specprof.experiments.arms import load_arms
    from specprof.experiments.run import choose_method, encode_prompts, prepare_rounds, warm_shapes
    from specprof.experiments.verification import verify, verify_steps

    if config.deterministic:
        make_deterministic()
    arms = load_arms(config)
    for note in arms.notes:
        LOG.info("note: %s", note)
    prompts = encode_prompts(config, arms, texts)
    arms, finding = choose_method(config, arms, prompts)
    if finding is not None:
        LOG.info("note: %s", finding)
    LOG.info("prompts: %d, repetitions: %d, 2 arms", len(prompts), config.repetitions)
    warm_shapes(arms)
    prepare_rounds(config, arms, prompts, (arms.baseline, arms.speculative))
    with narration.progress("verifying", verify_steps(config, prompts), shown=bars) as bar:
        return arms, verify(config, arms, prompts, bar.advance)


def _title(config: RunConfig, arms: Arms) -> str:
    from specprof.profiling.metrics import title_of

    title = title_of(
        config.pair.name,
        config.temperature,
        config.top_k,
        config.top_p,
        k=config.k,
        drafter=config.drafter,
        vocab_method=arms.vocab_method,
    )
    if arms.engine_used != "eager":
        title += f"  {arms.engine_used} engine"
    return f"{title}  {str(arms.target.dtype).removeprefix('torch.')}"


def _judge(verification: Verification, sentence: str) -> None:
    """Turn the verdict into an exit code.

    Raises:
        CorrectnessError: the output is not the target's, or plain decoding fails the test.
    """
    if verification.verdict == "failed":
        raise CorrectnessError(sentence, "try another --seed and --dtype float32: a fault stays; then please report it")
    if verification.verdict == "control failed":
        raise CorrectnessError(
            sentence, "try --dtype float32, --forward hf or another --device: one that passes says where the fault is"
        )
    if verification.verdict == "not tested":
        LOG.warning("%s Give more prompts, a longer --max-new-tokens or another drafter", sentence)
