"""The first screen: two models, how many tokens to draft, what to continue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Button, Footer, Input, OptionList, Static

from specprof.profiling.signs import visible
from specprof.tui.choices import LAYER_SKIP, PACKAGED, Choice, Entries, Offer, PairOffer, show_k

CHOSEN = "\N{BLACK CIRCLE}"
NOT_CHOSEN = "\N{WHITE CIRCLE}"
WRONG = "\N{BALLOT X}"

_DRAFTERS = {
    "model": "a small model",
    "ngram": "repeats earlier text",
    "layerskip": "target's first layers",
    "self": "the target itself",
    "random": "nearly all rejected",
}


class Picker(OptionList):
    """A list of which one line is chosen: the highlighted one, marked so that it is seen without colour too.

    Args:
        lines: what each line says, a name and words on it.
        chosen: index of the line chosen first.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "cursor_down", "choose", key_display="\N{UP DOWN ARROW}"),
        Binding("enter", "screen.start", "start"),
    ]

    def __init__(self, title: str, lines: Sequence[tuple[str, str]], chosen: int, *, id: str) -> None:
        self._choices = lines
        self._name_width = max(len(name) for name, _ in lines)
        self._marked = chosen
        super().__init__(*(self._prompt_of(index) for index in range(len(lines))), id=id, markup=False)
        self.highlighted = chosen
        self.border_title = title

    @property
    def chosen(self) -> int:
        """Index of the chosen line."""
        return self._marked

    @on(OptionList.OptionHighlighted)
    def _move_mark(self, event: OptionList.OptionHighlighted) -> None:
        before, self._marked = self._marked, event.option_index
        for index in {before, self._marked}:
            self.replace_option_prompt_at_index(index, self._prompt_of(index))

    def _prompt_of(self, index: int) -> Content:
        name, words = self._choices[index]
        mark = CHOSEN if index == self._marked else NOT_CHOSEN
        return Content.assemble(
            f"{mark} {name:<{self._name_width}}", (f"  {words}", "" if index == self._marked else "dim")
        )


class Field(Vertical):
    """One line to type, and what is wrong with it."""

    def __init__(self, title: str, value: str, placeholder: str, *, id: str) -> None:
        super().__init__(id=id)
        self._entry = Entry(value, placeholder=placeholder, select_on_focus=False)
        self._entry.border_title = title
        self._problem = Static(classes="problem", markup=False)

    def compose(self) -> ComposeResult:
        yield self._entry
        yield self._problem

    @property
    def value(self) -> str:
        return self._entry.value

    def complain(self, words: str | None) -> None:
        """Say what is wrong; None: nothing is."""
        self._problem.update("" if words is None else f"{WRONG} {words}")
        self.set_class(words is not None, "-wrong")

    def focus_entry(self) -> None:
        self._entry.focus()


class Entry(Input):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.start", "start"),
        Binding("escape", "screen.leave", "leave field"),
    ]


class StartScreen(Screen[Choice]):
    """Chooses what to watch; dismissed with it.

    Args:
        choice: what the fields hold at first.
    """

    CSS_PATH = "start.tcss"
    AUTO_FOCUS = "#pair"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-wide")]  # noqa: RUF012  # Textual's own type
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "app.focus_next", "next field"),
        Binding("escape", "leave", "quit"),
        Binding("q", "quit", "quit", show=False),
    ]

    def __init__(self, offer: Offer, choice: Choice) -> None:
        super().__init__()
        self._offer = offer
        self._choice = choice
        self._attempted = False

    def compose(self) -> ComposeResult:
        choice, offer = self._choice, self._offer
        with VerticalScroll(id="form", can_focus=False):
            yield Static(
                Content.assemble(
                    ("specprof", "bold"),
                    ("  watch a draft propose tokens, and the target accept or reject them", "dim"),
                ),
                id="title",
            )
            yield Picker("Pair", self._pair_lines(), self._first_pair(), id="pair")
            yield Static(id="notes", markup=False)
            with Horizontal(id="own"):
                yield Field("Draft", choice.draft or "", "hub id or directory", id="draft")
                yield Field("Target", choice.target or "", "hub id or directory", id="target")
            with Horizontal(id="lists"):
                drafters = [(visible(name), _DRAFTERS.get(name, "")) for name in offer.drafters]
                yield Picker("Drafter", drafters, _index(offer.drafters, choice.drafter), id="drafter")
                yield Picker("Prompts", self._prompt_lines(), self._first_prompts(), id="prompts")
            yield Field("Prompts file", self._named_file(), "JSON, JSONL or plain text", id="prompts_file")
            yield Field("Text", choice.prompt, "the beginning of a text: it will be continued", id="prompt")
            with Horizontal(id="numbers"):
                layers = "" if choice.draft_layers is None else str(choice.draft_layers)
                yield Field("K: tokens a round", show_k(choice.k), "a number, or auto", id="k")
                yield Field("Temperature", f"{choice.temperature:g}", "0 is greedy", id="temperature")
                yield Field("Layers that draft", layers, "1 or more", id="draft_layers")
            with Horizontal(id="actions"):
                yield Button("Start", id="start", variant="primary", compact=True)
                yield Button("Quit", id="quit", compact=True)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self._show_what_counts()
        # The focus scrolls its list into the middle, as if what is above it did not matter.
        self.call_after_refresh(self.query_one("#form").scroll_home, animate=False)

    @property
    def entries(self) -> Entries:
        """The fields as they are."""
        pair, prompts = self._picked("pair"), self._picked("prompts")
        names, sets = [offer.name for offer in self._offer.pairs], [PACKAGED, *self._offer.domains]
        return Entries(
            pair=names[pair] if pair < len(names) else None,
            draft=self._typed("draft"),
            target=self._typed("target"),
            k=self._typed("k"),
            temperature=self._typed("temperature"),
            drafter=self._offer.drafters[self._picked("drafter")],
            draft_layers=self._typed("draft_layers"),
            prompts=sets[prompts] if prompts < len(sets) else None,
            prompts_file=self._typed("prompts_file"),
            prompt=self._typed("prompt") if prompts == len(sets) + 1 else None,
        )

    def action_start(self) -> None:
        """Go, or say what is wrong."""
        self._attempted = True
        problems = self._complain()
        if problems:
            self.query_one(f"#{next(iter(problems))}", Field).focus_entry()
            return
        self.dismiss(self.entries.choice())

    def action_leave(self) -> None:
        """Out of a field, or out of the program."""
        if isinstance(self.focused, Input):
            self.query_one("#start").focus()
        else:
            self.action_quit()

    def action_quit(self) -> None:
        self.app.exit()

    @on(Button.Pressed, "#start")
    def _start(self) -> None:
        self.action_start()

    @on(Button.Pressed, "#quit")
    def _quit(self) -> None:
        self.action_quit()

    @on(OptionList.OptionHighlighted)
    def _show_what_counts(self) -> None:
        """Only the fields that mean something with what is chosen."""
        entries = self.entries
        for name, counts in (
            ("own", entries.pair is None),
            ("draft", entries.needs_draft),
            ("draft_layers", entries.drafter == LAYER_SKIP),
            ("prompts_file", entries.prompts is None and entries.prompt is None),
            ("prompt", entries.prompts is None and entries.prompt is not None),
        ):
            self.query_one(f"#{name}").display = counts
        offered = next((offer for offer in self._offer.pairs if offer.name == entries.pair), None)
        notes = "Any causal language model with safetensors weights." if offered is None else visible(offered.notes)
        self.query_one("#notes", Static).update(notes)
        self._complain()

    @on(Input.Changed)
    def _complain(self) -> dict[str, str]:
        """Say beside each field what is wrong with it, once somebody wanted to start."""
        problems = self.entries.problems() if self._attempted else {}
        for field in self.query(Field):
            field.complain(problems.get(field.id or ""))
        return problems

    def _picked(self, name: str) -> int:
        return self.query_one(f"#{name}", Picker).chosen

    def _typed(self, name: str) -> str:
        return self.query_one(f"#{name}", Field).value

    def _pair_lines(self) -> list[tuple[str, str]]:
        width = max((len(_place(offer)) for offer in self._offer.pairs), default=0)
        lines = [
            (visible(offer.name), f"{_place(offer):<{width}}  {visible(offer.what)}") for offer in self._offer.pairs
        ]
        return [*lines, ("other models", "name a draft and a target")]

    def _first_pair(self) -> int:
        names = [offer.name for offer in self._offer.pairs]
        return len(names) if self._choice.target is not None or not names else _index(names, self._choice.pair)

    def _prompt_lines(self) -> list[tuple[str, str]]:
        domains = [(visible(domain), "packaged") for domain in self._offer.domains]
        return [("mixed", "some of each"), *domains, ("file", "your own"), ("text", "typed here")]

    def _first_prompts(self) -> int:
        sets = [PACKAGED, *self._offer.domains]
        if self._choice.prompt:
            return len(sets) + 1
        return sets.index(self._choice.prompts) if self._choice.prompts in sets else len(sets)

    def _named_file(self) -> str:
        return "" if self._choice.prompts in (PACKAGED, *self._offer.domains) else self._choice.prompts


def _place(offer: PairOffer) -> str:
    return {True: "here", False: "to fetch", None: "-"}[offer.here]


def _index(values: Iterable[str], value: str | None) -> int:
    """Where it is, or the first place."""
    return next((index for index, each in enumerate(values) if each == value), 0)
