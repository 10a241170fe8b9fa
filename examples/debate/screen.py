"""Draws the board with rich: a column for each debater, the moderator below, then your line."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.layout import Layout
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from examples.debate.board import UNDEBATED, Board, Speaker, State, count

# Each can be read on a dark and on a light terminal.
_COLORS = {
    "advocate": "#259f5e",
    "critic": "#cc7420",
    "analyst": "#3d8fe0",
    "moderator": "#a277dd",
}
_STOPPED = "#e2557a"

_LABELS = {
    State.SILENT: "",
    State.WAITING: "○ waiting",
    State.SPEAKING: "● arguing",
    State.LISTENING: "○ listening",
    State.DONE: "✓ done",
    State.STOPPED: "■ stopped by you",
    State.FAILED: "✗ failed",
}


@dataclass
class _View:
    """Which lines are seen of the texts that are longer than their panels."""

    back: int = 0
    """How many lines the user has scrolled back from the newest."""
    longest: int = 0
    """How many lines of the longest text do not fit."""


class Screen:
    """The whole terminal: the board, and the line that the user types.

    Parameters:
        board: The state of the debate.
        notice: A line for the user at the top.
        keys: What further keys do.
    """

    def __init__(self, board: Board, notice: str, *, keys: str = ""):
        self._board = board
        self._keys = f"{keys} · " if keys else ""
        self._view = _View()
        self.notice = notice
        self.typed = ""
        self.status: Callable[[], str] = str
        """Returns what is shown above the user's line."""

    def scroll(self, lines: int) -> None:
        """Scroll back by a number of lines, or forward if it is negative."""
        self._view.back = max(0, min(self._view.back + lines, self._view.longest))

    def scroll_to_end(self) -> None:
        """Show the newest lines again."""
        self._view.back = 0

    def __rich__(self) -> Layout:
        layout, debaters = Layout(), Layout(ratio=5)
        self._view.longest = 0
        debaters.split_row(
            *(Layout(_Column(who, self._view)) for who in self._board.debaters.values())
        )
        problem = UNDEBATED if self._board.undebated else ""
        moderator = Layout(
            _Column(self._board.moderator, self._view, problem), ratio=2, minimum_size=7
        )
        layout.split_column(
            Layout(self._header(), size=3), debaters, moderator, Layout(self._input(), size=3)
        )
        return layout

    def _header(self) -> Padding:
        header = Table.grid(expand=True)
        header.add_column(no_wrap=True)
        header.add_column(justify="right", no_wrap=True)
        header.add_row(Text("pipecat-jobs", style="bold"), Text(self.notice, style="dim"))
        topic = Text(self._board.topic, style="bold", no_wrap=True, overflow="ellipsis")
        centered = Table.grid(expand=True)
        centered.add_column(justify="center")
        centered.add_row(header)
        centered.add_row(topic)
        return Padding(centered, (0, 2))

    def _input(self) -> Panel:
        prompt = Text.assemble(("› ", "bold"), self.typed, "▌")
        if not self.typed:
            prompt.append(" The next topic; your first key stops the debate", style="dim")
        return Panel(
            _Scrolled(prompt, _View()),
            title=Text(self.status(), style="dim"),
            title_align="left",
            subtitle=Text(f"Enter: debate it · ↑↓: scroll · {self._keys}Ctrl-C: quit", style="dim"),
            subtitle_align="right",
            border_style="dim",
            padding=(0, 1),
        )


class _Column:
    """One speaker: its text, and below it its state."""

    def __init__(self, speaker: Speaker, view: _View, problem: str = ""):
        self._speaker = speaker
        self._view = view
        self._problem = problem or speaker.problem

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        color = _COLORS[self._speaker.name]
        border = color if self._speaker.busy else f"dim {color}"
        yield Panel(
            _Scrolled(self._said(color), self._view),
            title=Text(self._speaker.name.upper(), style=f"bold not dim {color}"),
            title_align="left",
            subtitle=self._status(color, room=options.max_width - 6),
            subtitle_align="left",
            border_style=border,
            padding=(0, 1),
            height=options.height,
        )

    def _said(self, color: str) -> Text:
        text = Text(self._speaker.text)
        match self._speaker.state:
            case State.SPEAKING:
                text.append("▌", style=color)
            case State.STOPPED:
                text.append(
                    " ■ cut here" if text else "■ cut before the first word", style=_STOPPED
                )
            case _ if self._problem:
                text.append(f"\n{self._problem}" if text else self._problem, _STOPPED)
            case _:
                pass
        return text

    def _status(self, color: str, *, room: int) -> Text:
        speaker = self._speaker
        if speaker.state is State.SILENT:
            return Text()
        if speaker.state in (State.STOPPED, State.FAILED):
            color = _STOPPED
        label, time = _LABELS[speaker.state], f"{speaker.seconds:.1f} s"
        if speaker.name == "moderator":
            label = label.replace("arguing", "speaking")
        full = f"{label}  {time}  {count(speaker.words, 'word')}"
        # The narrowest column has only the beginning of the label.
        shorter = (full, f"{label}  {time}", f"{label.split(' by')[0]}  {time}")
        fitting = next((text for text in shorter if len(text) <= room), shorter[-1])
        return Text(fitting, f"not dim {color}")


class _Scrolled:
    """The lines of a text that the user sees, with the number of those above and below."""

    def __init__(self, text: Text, view: _View):
        self._text = text
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines, room = self._text.wrap(console, options.max_width), options.height or 1
        hidden = max(0, len(lines) - room)
        self._view.longest = max(self._view.longest, hidden)
        below = min(self._view.back, hidden)
        above = hidden - below
        seen = list(lines[above : above + room])
        if room > 2:
            # The line that says how many there are stands for one more.
            if above:
                seen[0] = Text(f"↑ {count(above + 1, 'line')}", style="dim")
            if below:
                seen[-1] = Text(f"↓ {count(below + 1, 'line')}", style="dim")
        yield Text("\n").join(seen)
