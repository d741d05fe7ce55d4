"""The words of a report: term, meaning, formula. docs/metrics.md and docs/theory.md say more."""

from __future__ import annotations

from specprof.reports.document import Definitions

DEFINITIONS = Definitions(
    (
        ("round", "One draft and one verification; in plain decoding, one pass of the target.", ""),
        ("K", "Tokens drafted per round.", ""),
        (
            "corrected token",
            "What replaces the first rejected token: drawn from what the target gives more probability than the draft.",
            "norm(max(0, target_probs - draft_probs))",
        ),
        ("bonus token", "All K were accepted, and the verification gives one token more.", ""),
        (
            "acceptance",
            "A drafted token is kept with this probability; when greedy, if it is the target's own choice.",
            "min(1, target_prob / draft_prob)",
        ),
        ("acceptance rate", "Accepted over drafted tokens, all rounds pooled.", "sum accepted / sum drafted"),
        (
            "tokens per round (tau)",
            "Mean acceptance length: the corrected or bonus token included. Rounds that the end of a text cut are "
            "left out.",
            "1 + sum accepted / rounds",
        ),
        (
            "alpha",
            "How alike the two models are: the mean over judged places; when greedy, the share of matches.",
            "sum over the vocabulary of min(target_probs, draft_probs)",
        ),
        (
            "decode speedup",
            "Seconds per token of plain decoding over those of speculation, the same prompts in both, prefill and "
            "first token left out.",
            "(AR seconds per token) / (SD seconds per token)",
        ),
        ("end-to-end speedup", "The same with prefill and first token.", ""),
        (
            "interval",
            "95 %, from resampling prompts (paired bootstrap): what other prompts of the same kind would have given. "
            "Below five prompts there is none.",
            "speedup times or over exp(t sqrt(n / (n - 1)) bootstrap error of its logarithm)",
        ),
        (
            "faster, slower",
            "The interval lies above 1, or below; else the two are not distinguishable.",
            "",
        ),
        (
            "the best measured",
            "The K with the highest speedup of several. It was picked by that value, chance included, so its speedup "
            "and interval are a little hopeful; measured once more by itself it has neither fault.",
            "",
        ),
        ("c", "Time to draft one token, in one-token passes of the target.", "draft step / target step"),
        ("v", "Time of the pass that verifies K drafted tokens, in the same unit.", "pass over K + 1 / target step"),
        ("o", "Everything else in a round, in the same unit.", "(sampling + overhead) / target step"),
        ("predicted speedup", "What acceptance and costs should give.", "tau / (K c + v + o), times (1 + plain o)"),
        ("break-even", "Tokens per round at which speculation begins to pay.", "(K c + v + o) / (1 + plain o)"),
        (
            "phases",
            "draft: all passes of the draft. verify: the target's pass. sample: judging, and drawing the next token. "
            "overhead: the rest of a round's wall time. They sum to it.",
            "",
        ),
        ("first token", "Time from the prompt to the first token: both models' prefill.", ""),
        ("latency per round", "A round of speculation emits several tokens at once.", ""),
        (
            "loop",
            "A text that ends by repeating itself, which any drafter guesses.",
            "a period of at most 32 tokens",
        ),
    )
)
