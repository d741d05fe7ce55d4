"""The colours of reports, by what they stand for, on light and on dark ground.

Figures are drawn in the light ones; a page replaces each by a variable of its name, which the reader's preference
sets. Series are told apart by marker, dash or hatch as well. Okabe and Ito's colours, which the colour-blind can tell
apart, darkened or lightened until they stand out from their ground.
"""

from __future__ import annotations

COLORS: dict[str, tuple[str, str]] = {
    # Ground and ink
    "ground": ("#ffffff", "#15191e"),
    "panel": ("#f5f7f9", "#1d232a"),
    "ink": ("#1b1f24", "#e6eaee"),
    "quiet": ("#57606a", "#a3adb8"),
    "rule": ("#d5dbe1", "#39424c"),
    # Phases
    "draft": ("#0a6ba8", "#56b4e9"),
    "verify": ("#b45309", "#f0a03c"),
    "sample": ("#9b3a74", "#dd93bd"),
    "overhead": ("#6b7280", "#9aa3ad"),
    # Arms
    "ar": ("#5b626b", "#b3bcc6"),
    "sd": ("#00704f", "#35c79a"),
    # Domains and other series, in this order
    "series0": ("#0b6aa7", "#5ab5ea"),
    "series1": ("#b55208", "#f1a13d"),
    "series2": ("#01714e", "#37c89b"),
    "series3": ("#9c3b73", "#de94be"),
    "series4": ("#7a5c00", "#e3c83f"),
    "series5": ("#4b4fa6", "#a5a9f2"),
    # Verdicts and tokens
    "good": ("#02714d", "#38c99c"),
    "bad": ("#b3261e", "#ff8f85"),
    "doubt": ("#805b00", "#e5ca41"),
    "accepted": ("#d5efe4", "#12402f"),
    "corrected": ("#fbdcd8", "#54211c"),
    "bonus": ("#d6e6f7", "#163a57"),
    # Speedups in nine steps, slower to faster, 4 is 1x; ink reads on all of them
    "heat0": ("#e08b4e", "#8a4a17"),
    "heat1": ("#eba873", "#6f3f19"),
    "heat2": ("#f3c7a3", "#55351b"),
    "heat3": ("#f9e3d1", "#3b2b1f"),
    "heat4": ("#f2f4f6", "#262c33"),
    "heat5": ("#d7e7f4", "#1e3345"),
    "heat6": ("#b2d2ea", "#1d425e"),
    "heat7": ("#8abbdf", "#1c5279"),
    "heat8": ("#62a5d4", "#1b6294"),
}
