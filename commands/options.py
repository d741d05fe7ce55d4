"""Options that several subcommands share, with one help text each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Pair = Annotated[str | None, typer.Option("--pair", help="A registered pair, or one named in specprof.toml.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ... [default: cuda if there is one]")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        metavar="auto",
        help="auto: spread a model that is too large for one GPU over all of them, and main memory.",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Use what is on this machine; ask no network.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Commit, tag or branch of the (target) model.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let a model bring its own Python code. Read that code first.")
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="Build the true architecture with random weights, no download: true cost, meaningless text.",
    ),
]
ScaleLayers = Annotated[
    int | None,
    typer.Option("--scale-layers", metavar="N", help="Random weights: build at most N layers of each model."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the JSON document to FILE as well.")
]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="-v streams the text, -vv tells details.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Nothing on stderr but warnings and errors.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Narrate on stderr as JSON lines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
Color = Annotated[str, typer.Option("--color", help="auto, always or never.")]
ResultsDir = Annotated[Path, typer.Option("--results-dir", envvar="SPECPROF_RESULTS", help="Where results are kept.")]
Draft = Annotated[str | None, typer.Option("--draft", help="Draft model: hub id or directory.")]
Target = Annotated[str | None, typer.Option("--target", help="Target model: hub id or directory.")]
KMax = Annotated[int | None, typer.Option("--k-max", help="The most that --k auto drafts. [default: 8]")]
Drafter = Annotated[
    str,
    typer.Option(
        "--drafter",
        help="model; ngram (look the last words up in the context); layerskip (the target's first layers); "
        "self (the target itself); random.",
    ),
]
DraftLayers = Annotated[
    int | None, typer.Option("--draft-layers", metavar="N", help="layerskip: how many layers draft.")
]
DraftThreshold = Annotated[
    float,
    typer.Option(
        "--draft-threshold",
        metavar="P",
        help="End a draft with the first token where none has probability P or more.",
    ),
]
VocabMethod = Annotated[
    str,
    typer.Option(
        "--vocab-method",
        help="A draft of another vocabulary proposes by tli (tokens both have), slem (text; greedy only) or auto.",
    ),
]
PromptTexts = Annotated[list[str] | None, typer.Option("--prompt", help="A prompt's text; may be repeated.")]
PromptFile = Annotated[
    str | None,
    typer.Option("--prompts", metavar="FILE", help="Prompts from a JSON, JSONL or text file; - reads stdin."),
]
Domain = Annotated[
    list[str] | None,
    typer.Option("--domain", help="Only prompts of this domain; may be repeated. code, conversation, ..."),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Length limit of each answer.")]
TopK = Annotated[int, typer.Option("--top-k", help="Keep the k most probable tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Keep this much probability mass.")]
Seed = Annotated[int, typer.Option("--seed", help="Of sampling, and of random weights.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float16, bfloat16, float32 or int4, for both models.")]
Forward = Annotated[
    str,
    typer.Option(
        "--forward",
        help="native (ours in C; CPU, float32), own (ours in PyTorch), hf (Hugging Face's), or auto: the first "
        "that can.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="eager (launch by launch); static (fixed shapes, the device decides); graph (that as CUDA graphs); "
        "auto (graph on CUDA where the pair can, else eager).",
    ),
]
Compile = Annotated[bool, typer.Option("--compile", help="static, graph: fuse operations with torch.compile first.")]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="CPU threads that compute. [default: PyTorch's choice]")
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Decode on to the length limit: fixed work, but text past its end.")
]
ChatTemplate = Annotated[
    str, typer.Option("--chat-template", help="auto (use the model's own where prompts are instructions) or off.")
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Only deterministic kernels, chosen without measuring.")
]
K = Annotated[
    str,
    typer.Option(
        "-k", "--k", metavar="K", help="Tokens drafted per round; 0 is plain decoding; auto chooses each round."
    ),
]
