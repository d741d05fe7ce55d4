"""Options that several subcommands share: one name, one group, one help text each.

What is written in capitals is the option itself, for commands that give it another type or default.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.models import OptionInfo

from specprof.commands import completing
from specprof.commands.completing import Completer, one_of
from specprof.commands.help import DRAFTING, MACHINE, MEASURING, MESSAGES, MODELS, PROMPTS, RESULTS, THRESHOLDS
from specprof.data.prompts import DOMAINS
from specprof.experiments.config import DRAFTERS, ENGINES, VOCAB_METHODS
from specprof.experiments.thresholds import NAMES
from specprof.models.devices import DTYPES

DEFAULT_NUM_PROMPTS = 12
COLORS = ("auto", "always", "never")
FORWARDS = ("auto", "native", "own", "hf")
CHAT_TEMPLATES = ("auto", "off")
DEVICES = ("cpu", "cuda", "mps")


def option(
    panel: str, *names: str, help: str, metavar: str | None = None, offers: Completer | None = None, **other: Any
) -> OptionInfo:
    """An option in a group of its command's help."""
    info = typer.Option(*names, help=help, metavar=metavar, autocompletion=offers, rich_help_panel=panel, **other)
    assert isinstance(info, OptionInfo)
    return info


def defaulting(shared: OptionInfo, default: object, *, metavar: str | None = None) -> OptionInfo:
    """A shared option where None stands for a default that only help has to name."""
    info = copy.copy(shared)
    info.help = f"{shared.help} [default: {default}]"
    info.metavar = metavar or shared.metavar
    return info


def several(shared: OptionInfo, default: object, *, metavar: str, help: str | None = None) -> OptionInfo:
    """A shared option that takes a list, with commas or given again."""
    info = copy.copy(shared)
    info.help = f"{help or shared.help} [default: {default}]"
    info.metavar = metavar
    if shared.autocompletion is not None:
        info.autocompletion = completing.some_of(shared.autocompletion)
    return info


# Models

PAIR = option(
    MODELS, "--pair", metavar="PAIR", offers=completing.pair, help="A registered pair, or one named in specprof.toml."
)
DTYPE = option(
    MODELS,
    "--dtype",
    metavar="TYPE",
    offers=one_of(DTYPES),
    help="float16, bfloat16, float32 or int4, for both models; else what the pair says.",
)
Pair = Annotated[str | None, PAIR]
Draft = Annotated[str | None, option(MODELS, "--draft", metavar="MODEL", help="Draft model: hub id or directory.")]
Target = Annotated[str | None, option(MODELS, "--target", metavar="MODEL", help="Target model: hub id or directory.")]
Dtype = Annotated[str | None, DTYPE]
Revision = Annotated[
    str | None, option(MODELS, "--revision", metavar="NAME", help="Commit, tag or branch of the (target) model.")
]
Offline = Annotated[bool, option(MODELS, "--offline", help="Use what is on this machine; ask no network.")]
TrustRemoteCode = Annotated[
    bool, option(MODELS, "--trust-remote-code", help="Let a model bring its own Python code. Read that code first.")
]
RandomWeights = Annotated[
    bool,
    option(
        MODELS,
        "--random-weights",
        help="Build the true architecture with random weights, no download: true cost, meaningless text.",
    ),
]
ScaleLayers = Annotated[
    int | None,
    option(MODELS, "--scale-layers", metavar="N", help="--random-weights: build at most N layers of each model."),
]

# Drafting

K = option(
    DRAFTING, "-k", "--k", metavar="K", help="Tokens drafted per round; 0 is plain decoding; auto chooses each round."
)
DRAFTER = option(
    DRAFTING,
    "--drafter",
    metavar="NAME",
    offers=one_of(DRAFTERS),
    help="model; ngram (look the last words up in the context); layerskip (the target's first layers); "
    "self (the target itself); random.",
)
DRAFT_THRESHOLD = option(
    DRAFTING,
    "--draft-threshold",
    metavar="P",
    help="End a draft with the first token where none has probability P or more.",
)
VOCAB_METHOD = option(
    DRAFTING,
    "--vocab-method",
    metavar="NAME",
    offers=one_of(VOCAB_METHODS),
    help="A draft of another vocabulary proposes by tli (tokens both have), slem (text; greedy only) or auto.",
)
KMax = Annotated[
    int | None, option(DRAFTING, "--k-max", metavar="N", help="The most that --k auto drafts. [default: 8]")
]
Drafter = Annotated[str, DRAFTER]
DraftLayers = Annotated[
    int | None, option(DRAFTING, "--draft-layers", metavar="N", help="--drafter layerskip: how many layers draft.")
]
DraftThreshold = Annotated[float, DRAFT_THRESHOLD]
VocabMethod = Annotated[str, VOCAB_METHOD]
SyntheticAcceptance = Annotated[
    float | None,
    option(
        DRAFTING,
        "--synthetic-acceptance",
        metavar="P",
        help="Accept each drafted token with probability P: true cost, not the target's text.",
    ),
]

# Prompts and sampling

PROMPT_FILE = option(
    PROMPTS, "--prompts", metavar="FILE", help="Prompts from a JSON, JSONL or text file; - reads stdin."
)
DOMAIN = option(
    PROMPTS,
    "--domain",
    metavar="NAME",
    offers=one_of(DOMAINS),
    help="Only prompts of this domain; may be repeated. Packaged: code, conversation, summarization.",
)
NUM_PROMPTS = option(
    PROMPTS,
    "-n",
    "--num-prompts",
    metavar="N",
    help="At most this many prompts.",
)
MAX_NEW_TOKENS = option(PROMPTS, "--max-new-tokens", metavar="N", help="Length limit of each answer, in tokens.")
TEMPERATURE = option(PROMPTS, "--temperature", metavar="T", help="0 is greedy, 1 the model's own distribution.")
TOP_K = option(PROMPTS, "--top-k", metavar="N", help="Keep the N most probable tokens; 0 keeps all.")
TOP_P = option(PROMPTS, "--top-p", metavar="P", help="Keep this much probability mass, 0 to 1.")
SEED = option(PROMPTS, "--seed", metavar="N", help="Of sampling, and of random weights.")
CHAT_TEMPLATE = option(
    PROMPTS,
    "--chat-template",
    metavar="WHEN",
    offers=one_of(CHAT_TEMPLATES),
    help="auto (use the model's own where prompts are instructions) or off.",
)
PromptTexts = Annotated[
    list[str] | None, option(PROMPTS, "--prompt", metavar="TEXT", help="A prompt's text; may be repeated.")
]
PromptFile = Annotated[str | None, PROMPT_FILE]
Domain = Annotated[list[str] | None, DOMAIN]
NumPrompts = Annotated[int | None, defaulting(NUM_PROMPTS, f"{DEFAULT_NUM_PROMPTS} packaged, all own")]
MaxNewTokens = Annotated[int, MAX_NEW_TOKENS]
Temperature = Annotated[float, TEMPERATURE]
TopK = Annotated[int, TOP_K]
TopP = Annotated[float, TOP_P]
Seed = Annotated[int, SEED]
IgnoreEos = Annotated[
    bool, option(PROMPTS, "--ignore-eos", help="Decode on to the length limit: fixed work, but text past its end.")
]
ChatTemplate = Annotated[str, CHAT_TEMPLATE]

# Measuring

WARMUP = option(MEASURING, "--warmup", metavar="N", help="Prompts decoded before anything is measured.")
REPS = option(MEASURING, "--reps", metavar="N", help="Times each prompt is decoded by each arm.")
Warmup = Annotated[int, WARMUP]
Reps = Annotated[int, REPS]
Detail = Annotated[
    bool, option(MEASURING, "--detail", help="Record each drafted token's probabilities when greedy, too.")
]
Deterministic = Annotated[
    bool, option(MEASURING, "--deterministic", help="Only deterministic kernels, chosen without measuring.")
]

# Machine

FORWARD = option(
    MACHINE,
    "--forward",
    metavar="NAME",
    offers=one_of(FORWARDS),
    help="native (ours in C; CPU, float32), own (ours in PyTorch), hf (Hugging Face's), or auto: the first that can.",
)
ENGINE = option(
    MACHINE,
    "--engine",
    metavar="NAME",
    offers=one_of(ENGINES),
    help="eager (launch by launch); static (fixed shapes, the device decides); graph (that as CUDA graphs); "
    "auto (graph on CUDA where the pair can, else eager).",
)
THREADS = option(MACHINE, "--threads", metavar="N", help="CPU threads that compute.")
Device = Annotated[
    str | None,
    option(
        MACHINE,
        "--device",
        metavar="DEVICE",
        offers=one_of(DEVICES),
        help="cpu, cuda, cuda:1, mps, ... [default: cuda if there is one]",
    ),
]
DeviceMap = Annotated[
    str | None,
    option(
        MACHINE,
        "--device-map",
        metavar="auto",
        offers=one_of(("auto",)),
        help="auto: spread a model that is too large for one GPU over all of them, and main memory.",
    ),
]
Forward = Annotated[str, FORWARD]
Engine = Annotated[str, ENGINE]
Compile = Annotated[
    bool, option(MACHINE, "--compile", help="--engine static, graph: fuse operations with torch.compile first.")
]
Threads = Annotated[int | None, defaulting(THREADS, "PyTorch's choice")]

# Comparing

FailIf = Annotated[
    list[str] | None,
    option(
        THRESHOLDS,
        "--fail-if",
        metavar="EXPR",
        help=f"Exit with 8 if this holds, as 'speedup<0.97'; may be repeated. Names: {NAMES}. Operators: < <= > >=. "
        "97% is 0.97.",
    ),
]
Certain = Annotated[
    bool, option(THRESHOLDS, "--certain", help="--fail-if: only where the whole 95 % interval is beyond the threshold.")
]
EachDomain = Annotated[
    bool, option(THRESHOLDS, "--each-domain", help="--fail-if: judge every domain too, not only all prompts together.")
]
AllowMachineMismatch = Annotated[
    bool,
    option(
        THRESHOLDS,
        "--allow-machine-mismatch",
        help="Compare although the hardware differs: speedups and acceptance; tokens/s are shown, and mean little.",
    ),
]

# Results

RESULTS_DIR = option(RESULTS, "--results-dir", metavar="DIR", envvar="SPECPROF_RESULTS", help="Where results are kept.")
Json = Annotated[bool, option(RESULTS, "--json", help="Print one JSON document instead of the table.")]
Output = Annotated[
    Path | None, option(RESULTS, "-o", "--output", metavar="FILE", help="Write the JSON document to FILE as well.")
]
ResultsDir = Annotated[Path, RESULTS_DIR]
NoSave = Annotated[bool, option(RESULTS, "--no-save", help="Keep no events.")]

# Messages

Color = Annotated[
    str, option(MESSAGES, "--color", metavar="WHEN", offers=one_of(COLORS), help="auto, always or never.")
]
Verbose = Annotated[
    int,
    option(MESSAGES, "-v", "--verbose", count=True, show_default=False, help="-v streams the text, -vv tells details."),
]
Quiet = Annotated[bool, option(MESSAGES, "-q", "--quiet", help="Nothing on stderr but warnings and errors.")]
LogJson = Annotated[bool, option(MESSAGES, "--log-json", help="Narrate on stderr as JSON lines.")]
Debug = Annotated[bool, option(MESSAGES, "--debug", help="Show the traceback of a failure.")]
