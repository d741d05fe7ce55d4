"""Text that a model writes itself: what a draft meets when it speculates, and no corpus has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaForCausalLM

from training.corpus import Windows

BEGINNING = 32
"""Tokens of the corpus that a text goes on from."""
LENGTH = 256
AT_ONCE = 256
"""Texts written side by side."""
TEMPERATURES = (0.0, 0.7, 1.0, 1.0)
"""Every fourth of a batch's texts is greedy: that is how pairs are often run, and text of its own kind."""


@torch.inference_mode()
def written(model: LlamaForCausalLM, beginnings: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Go on from tokens ``[rows, begun]`` to ``[rows, length]``, the end of a text being a token like any other."""
    from transformers import DynamicCache

    rows = beginnings.shape[0]
    temperatures = torch.tensor(TEMPERATURES, device=beginnings.device).repeat(-(-rows // len(TEMPERATURES)))[
        :rows, None
    ]
    cache, tokens, text = DynamicCache(config=model.config), beginnings, [beginnings]
    for _ in range(length - beginnings.shape[1]):
        logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        # Gumbel's trick: the largest of the logits plus noise is a sample, and without the noise the greedy token.
        noise = -torch.empty_like(logits).exponential_(generator=generator).log()
        tokens = (logits + temperatures * noise).argmax(-1, keepdim=True)
        text.append(tokens)
    return torch.cat(text, 1)


def own_text(
    model: LlamaForCausalLM,
    corpus: Windows,
    num_tokens: int,
    kept: Path,
    device: torch.device,
    report: Callable[[int], None],
) -> NDArray[np.uint16]:
    """Texts of a model, begun by stretches of the corpus, as one long row ``[tokens]`` that is kept in a file.

    Args:
        report: is called after every batch, with the number of tokens there are.
    """
    have = kept.stat().st_size // 2 if kept.exists() else 0
    generator = torch.Generator(device).manual_seed(have)
    with kept.open("ab") as out:
        while have < num_tokens:
            beginnings = corpus.batch(have, AT_ONCE, BEGINNING).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                text = written(model, beginnings, LENGTH, generator)
            out.write(text.to(torch.int32).cpu().numpy().astype(np.uint16).tobytes())
            out.flush()
            have += text.numel()
            report(have)
    return np.memmap(kept, np.uint16, "r")
