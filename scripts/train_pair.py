#!/usr/bin/env python
"""Train the pair that specprof ships, or one like it, from a corpus of your own. docs/packaged_pair.md is the recipe.

A corpus is a JSONL file (or .jsonl.xz) of {"text": ..., "domain": ...}; the domain may be missing. Everything is kept
under --out: a command that was stopped goes on where it was, one that has finished does nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from specprof.profiling.caveats import loops

sys.path.insert(0, str(Path(__file__).parent))

from training import corpus as text
from training import held_out, losses, network, own_text, pair_tokenizers, trainer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Out = Annotated[Path, typer.Option(help="Folder that everything is kept in.", file_okay=False)]
Corpus = Annotated[Path, typer.Option("--corpus", help="Text to train on.", exists=True, dir_okay=False)]
Valid = Annotated[
    Path, typer.Option("--valid", help="Text to measure on, none of it in the corpus.", exists=True, dir_okay=False)
]
Tokens = Annotated[float, typer.Option(help="To train on in all, as 12e6.", min=1.0)]
Name = Annotated[str, typer.Option(help="Folder under --out that the model is saved in.")]
From = Annotated[
    Path | None,
    typer.Option(
        "--from", help="A model to begin with, of this shape or smaller; its vocabulary may be another.", exists=True
    ),
]
Layers = Annotated[int, typer.Option(min=1)]
Width = Annotated[int, typer.Option(min=1, help="Of the hidden states.")]
Heads = Annotated[int, typer.Option(min=1)]
Mlp = Annotated[int, typer.Option(min=1, help="Width of the MLP.")]
Rate = Annotated[
    float, typer.Option(help="Learning rate of the matrices (Muon); the embedding has half of it (AdamW).")
]
Seed = Annotated[int, typer.Option(help="Of the choice of text: another one for a run that goes on from an earlier.")]
LongFrom = Annotated[
    float, typer.Option(help="Share of the run after which windows have 1024 tokens, not 256.", min=0.0, max=1.0)
]
Compile = Annotated[
    bool, typer.Option(help="Fuse operations with torch.compile: half a minute, then 1.1 to 1.2x as fast.")
]
Every = Annotated[float, typer.Option(help="Seconds between reports and checkpoints.")]

BYTE_LEVEL, METASPACE = "tokenizer", "metaspace_tokenizer"
VOCABULARY = {BYTE_LEVEL: 4096, METASPACE: 2048}
SHOWN_OF_PROMPT = 240
"""Characters at its end."""
READS_OF_CORPUS = 3
"""A tokenizer is trained on every so many-th document."""


@dataclass(frozen=True)
class Workplace:
    """Files under ``--out``, made when they are first asked for."""

    out: Path
    corpus: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def tokenizer(self, kind: str) -> PreTrainedTokenizerFast:
        folder = self.out / kind
        if not folder.exists():
            texts = (document.text for document in islice(text.documents(self.corpus), 0, None, READS_OF_CORPUS))
            made = pair_tokenizers.byte_level if kind == BYTE_LEVEL else pair_tokenizers.metaspace
            pair_tokenizers.save(made(texts, VOCABULARY[kind]), folder)
            say(f"{folder}: {VOCABULARY[kind]} tokens")
        return pair_tokenizers.opened(folder)

    def windows(self, kind: str, seed: int) -> text.Windows:
        kept = self.out / f"{kind}.train.bin"
        row = text.encoded(self.tokenizer(kind), self.corpus, kept)
        return text.Windows(row, seed)

    def own_text(self) -> text.Windows:
        kept = self.out / "own_text.bin"
        if not kept.exists():
            raise SystemExit("error: there is no text of the target's own yet; run the command write first")
        return text.Windows(np.memmap(kept, np.uint16, "r"), 5, own_text.LENGTH)


def say(line: str) -> None:
    print(line, flush=True)


@app.command()
def target(
    out: Out,
    corpus: Corpus,
    tokens: Tokens = 40e6,
    layers: Layers = 8,
    width: Width = 256,
    heads: Heads = 4,
    mlp: Mlp = 672,
    begin_with: From = None,
    rate: Rate = 2e-3,
    seed: Seed = 1,
    long_from: LongFrom = 0.85,
    compiled: Compile = True,
    every: Every = 60.0,
) -> None:
    """The tokenizer, and the target on the corpus."""
    place = Workplace(out, corpus)
    tokenizer = place.tokenizer(BYTE_LEVEL)
    model = beginning(begin_with, tokenizer, layers, width, heads, mlp)
    learning, batch = Surprised(network.Network(model)), place.windows(BYTE_LEVEL, seed).batch
    plan = planned(tokens, rate, long_from)
    fit(place, "target", BYTE_LEVEL, model, learning, batch, plan, compiled=compiled, every=every)


@app.command()
def write(out: Out, corpus: Corpus, tokens: Tokens = 3e6) -> None:
    """Let the target go on from the corpus: the text that its draft will meet."""
    place = Workplace(out, corpus)
    model = network.opened(out / "target").eval()
    nn.Module.to(model, place.device)
    own_text.own_text(
        model,
        place.windows(BYTE_LEVEL, 4),
        int(tokens),
        out / "own_text.bin",
        place.device,
        lambda have: say(f"{have / 1e6:6.2f}M tokens written"),
    )


@app.command()
def draft(
    out: Out,
    corpus: Corpus,
    tokens: Tokens = 12e6,
    layers: Layers = 2,
    width: Width = 192,
    heads: Heads = 3,
    mlp: Mlp = 512,
    name: Name = "draft",
    begin_with: From = None,
    rate: Rate = 4e-3,
    of_rejections: Annotated[
        float, typer.Option(help="Weight of the share of drafts rejected; the rest is KL.", min=0.0, max=1.0)
    ] = 0.0,
    of_own_text: Annotated[
        float, typer.Option(help="Share of batches that the target wrote itself.", min=0.0, max=1.0)
    ] = 0.6,
    long_from: LongFrom = 0.85,
    compiled: Compile = True,
    every: Every = 60.0,
) -> None:
    """A draft, distilled from the target on its own text and on the corpus."""
    place = Workplace(out, corpus)
    tokenizer = place.tokenizer(BYTE_LEVEL)
    model = beginning(begin_with, tokenizer, layers, width, heads, mlp)
    teacher = network.Network(network.opened(out / "target").requires_grad_(False)).to(place.device)
    batch = text.Mixed(place.own_text(), place.windows(BYTE_LEVEL, 6), of_own_text).batch
    learning = losses.Distillation(network.Network(model), teacher, of_rejections)
    plan = planned(tokens, rate, long_from)
    fit(place, name, BYTE_LEVEL, model, learning, batch, plan, compiled=compiled, every=every)


@app.command()
def metaspace(
    out: Out,
    corpus: Corpus,
    tokens: Tokens = 12e6,
    layers: Layers = 1,
    width: Width = 128,
    heads: Heads = 2,
    mlp: Mlp = 320,
    begin_with: From = None,
    rate: Rate = 4e-3,
    long_from: LongFrom = 0.85,
    compiled: Compile = True,
    every: Every = 60.0,
) -> None:
    """The draft of another vocabulary, on the corpus and on the target's own text, read again with its own tokens."""
    place = Workplace(out, corpus)
    tokenizer = place.tokenizer(METASPACE)
    model = beginning(begin_with, tokenizer, layers, width, heads, mlp)
    batch = text.Mixed(retold(place, tokenizer), place.windows(METASPACE, 7), 0.5).batch
    learning = Surprised(network.Network(model))
    plan = planned(tokens, rate, long_from)
    fit(place, "draft_metaspace", METASPACE, model, learning, batch, plan, compiled=compiled, every=every)


class Surprised(nn.Module):
    """Tokens ``[rows, length]`` to the cross-entropy of a network, in nats per token."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, tokens: Tensor) -> Tensor:
        return losses.surprise(self.body(tokens[:, :-1]), tokens[:, 1:])


def beginning(
    begin_with: Path | None, tokenizer: PreTrainedTokenizerFast, layers: int, width: int, heads: int, mlp: int
) -> LlamaForCausalLM:
    """The model that training begins with."""
    torch.manual_seed(0)
    model = network.llama(layers, width, heads, mlp, tokenizer, pair_tokenizers.CONTEXT)
    if begin_with is None:
        return model
    known = pair_tokenizers.opened(begin_with)
    return network.grown(network.moved_vocabulary(network.opened(begin_with), known, tokenizer), model)


def retold(place: Workplace, tokenizer: PreTrainedTokenizerFast) -> text.Windows:
    """What the target wrote, in the tokens of another vocabulary."""
    kept = place.out / "own_text.metaspace.bin"
    if not kept.exists():
        written = place.own_text().tokens.reshape(-1, own_text.LENGTH)
        texts = place.tokenizer(BYTE_LEVEL).batch_decode(written, skip_special_tokens=True)
        tokens = [token for ids in tokenizer(texts)["input_ids"] for token in (*ids, tokenizer.eos_token_id)]
        np.array(tokens, np.uint16).tofile(kept)
    return text.Windows(np.memmap(kept, np.uint16, "r"), 5)


def planned(tokens: float, rate: float, long_from: float) -> trainer.Plan:
    return trainer.Plan(int(tokens), long_from=long_from, matrices=rate, others=rate / 2)


def fit(
    place: Workplace,
    name: str,
    tokenizer: str,
    model: LlamaForCausalLM,
    learning: nn.Module,
    batch: trainer.Batch,
    plan: trainer.Plan,
    *,
    compiled: bool,
    every: float,
) -> None:
    """Train a model, and save it under its name, in float32, whenever there is something to report."""
    learning.to(place.device)
    loss_of = torch.compile(learning, dynamic=False) if compiled else learning
    folder = place.out / name
    say(f"{folder}: {model.num_parameters() / 1e6:.2f}M parameters, {plan.tokens / 1e6:.1f}M tokens on {place.device}")

    def report(progress: trainer.Progress, loss: float) -> None:
        speed = progress.tokens / progress.seconds
        say(
            f"{progress.seconds / 60:6.1f} min  step {progress.step:6d}  {progress.tokens / 1e6:7.2f}M tokens"
            f"  {speed:7.0f}/s  loss {loss:.3f}"
        )
        model.save_pretrained(folder)
        pair_tokenizers.copy(place.out / tokenizer, folder)

    trainer.train(
        model,
        loss_of,
        lambda step, rows, length: batch(step, rows, length).to(place.device),
        plan,
        place.out / f"{name}.pt",
        every=every,
        report=report,
    )


@app.command()
def measure(
    target: Annotated[Path, typer.Option(exists=True, file_okay=False)],
    valid: Valid,
    draft: Annotated[
        list[Path] | None, typer.Option(exists=True, file_okay=False, help="May be given several times.")
    ] = None,
    per_domain: Annotated[int, typer.Option(help="Documents of each domain that are gone on with.", min=1)] = 24,
    k: Annotated[str, typer.Option(help="Draft lengths, as 1,2,4.")] = "4",
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Bits per byte and tokens per round on held-out text, domain by domain."""
    documents, drafts = list(text.documents(valid)), draft or []
    bits = {
        str(folder): held_out.bits_per_byte(network.opened(folder).eval(), pair_tokenizers.opened(folder), documents)
        for folder in (target, *drafts)
    }
    accepted = {
        str(folder): [
            asdict(each)
            for each in held_out.acceptance(
                target, folder, documents, per_domain=per_domain, ks=tuple(map(int, k.split(",")))
            )
        ]
        for folder in drafts
    }
    if as_json:
        say(json.dumps({"bits_per_byte": bits, "tokens_per_round": accepted}, indent=2))
        return
    domains = sorted({document.domain for document in documents})
    say(row("bits per byte", (*domains, "mean")))
    for folder, found in bits.items():
        say(row(folder, [f"{found[domain]:.3f}" for domain in domains] + [f"{fmean(found.values()):.3f}"]))
    for folder, rounds in accepted.items():
        say("\n" + row(f"tokens per round, {folder}", (*domains, "mean")))
        for setting in dict.fromkeys((each["k"], each["temperature"]) for each in rounds):
            values = {
                each["domain"]: each["tokens_per_round"]
                for each in rounds
                if (each["k"], each["temperature"]) == setting
            }
            cells = [f"{values[domain]:.2f}" for domain in domains] + [f"{fmean(values.values()):.2f}"]
            say(row(f"K = {setting[0]}, temperature {setting[1]:g}", cells))


def row(label: str, cells: Iterable[str]) -> str:
    """Of a table; the label has room for the folder of a packaged model."""
    return f"{label:<58}" + "".join(f"{cell:>15}" for cell in cells)


@app.command()
def show(
    target: Annotated[Path, typer.Option(exists=True, file_okay=False)],
    per_domain: Annotated[int, typer.Option(help="Texts of each domain that are shown.", min=0)] = 3,
    tokens: Annotated[int, typer.Option(help="Of each text.", min=1)] = 96,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.8,
) -> None:
    """What a target makes of the packaged prompts, as it comes, and on how many of them it does not end in a loop."""
    made = list(held_out.continuations(target, tokens, temperature))
    shown: Counter[str] = Counter()
    for each in made:
        shown[each.prompt.domain] += 1
        if shown[each.prompt.domain] <= per_domain:
            ending = each.prompt.raw_text[-SHOWN_OF_PROMPT:]
            say(f"#### {each.prompt.prompt_id}\n\n```text\n[...]{ending}\n>>>\n{each.text}\n```\n")
    without = sum(not loops(each.tokens) for each in made)
    say(f"without a loop: {without} of {len(made)} texts ({without / len(made):.0%})")


@app.command()
def install(
    out: Out,
    pairs: Annotated[Path, typer.Option(help="Folder of the packaged pairs.")] = Path("specprof/models/pairs"),
) -> None:
    """Put target, draft and metaspace draft into the package, in float16, and say their checksums."""
    for name, place in (
        ("target", "tiny_dev/target"),
        ("draft", "tiny_dev/draft"),
        ("draft_metaspace", "tiny_cross/draft"),
    ):
        network.opened(out / name).half().save_pretrained(pairs / place)
        pair_tokenizers.copy(out / name, pairs / place)
        weights = pairs / place / "model.safetensors"
        weights.chmod(0o644)  # they are written for their owner alone
        content = weights.read_bytes()
        say(f"{hashlib.sha256(content).hexdigest()}  {place}  {len(content) / 1e6:.1f} MB")


if __name__ == "__main__":
    app()
