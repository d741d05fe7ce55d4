"""The tokenizers of the packaged pairs: byte-level BPE that splits as Llama 3 does, metaspace BPE as Llama 2 had."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
CONTEXT = 1024
FILES = ("tokenizer.json", "tokenizer_config.json")

# A newline ends a piece, and the indentation after it is a piece of its own: a prompt that ends in a newline then ends
# in a token that training has seen in the middle of texts. As Llama 3 but for digits, which are single here, and the
# underscore, which counts as a letter: a vocabulary this small has no room for numbers, and much Python to write.
LIKE_LLAMA_3 = (
    r"'(?i:[sdmt]|ll|ve|re)"
    r"|[^\r\n\p{L}\p{N}_]?[\p{L}_]+"
    r"| ?\p{N}"
    r"| ?[^\s\p{L}\p{N}_]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
CHAT_TEMPLATE = """\
{%- if messages | length == 1 and messages[0]['role'] == 'user' \
and messages[0]['content'].endswith('Summarize the above article:') -%}
{{- messages[0]['content'] + '\\n' -}}
{%- else -%}
{%- for message in messages -%}
{%- if not loop.first and message['role'] == 'user' -%}{{- '\\n\\n' -}}{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- '### Instruction:\\n' + message['content'] + '\\n\\n### Response:\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- message['content'] -}}
{%- else -%}
{{- raise_exception('this model knows the roles user and assistant only') -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}"""
"""The forms of the corpus: an instruction and its response, an article and its summary."""
_METASPACE_PIECES = re.compile(r"\n+| ?[A-Za-z_]+| ?\d| ?[^\s\w]+| +")


def byte_level(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """One token, :data:`END`, begins, ends and pads; its id is 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LIKE_LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def metaspace(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Spaces are written as U+2581, unknown characters as bytes, a space is put before every text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(texts), trainer)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    state = json.loads(tokenizer.to_str())
    # The bytes are ordinary vocabulary, as in Llama 2: a special token would be left out when text is decoded.
    state["added_tokens"] = [each for each in state["added_tokens"] if not each["content"].startswith("<0x")]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from _METASPACE_PIECES.findall(text)


def save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Two files, the chat template in one of them."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def copy(folder: Path, to: Path) -> None:
    """The same files beside a model: saved again, they would say where they were read from."""
    to.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(folder / name, to / name)


def opened(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that a folder holds, read from its files alone."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.model_max_length = 1 << 40  # the corpus is cut into windows afterwards: no warning of long documents
    return tokenizer
