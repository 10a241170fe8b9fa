"""Draws the board with rich: a column for each debater, the moderator below, then your line."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.layout import Layout
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from examples.debate.board import Board, Speaker, State

_COLORS = {
    "advocate": "#5fd787",
    "critic": "#ffaf5f",
    "analyst": "#5fafff",
    "moderator": "#d7afff",
}
_STOPPED = "#ff5f87"

_LABELS = {
    State.SILENT: "",
    State.WAITING: "○ waiting",
    State.SPEAKING: "● arguing",
    State.LISTENING: "○ listening",
    State.DONE: "✓ done",
    State.STOPPED: "■ stopped by you",
    State.FAILED: "✗ failed",
}


class Screen:
    """The whole terminal: the board, and the line that the user types."""

    def __init__(self, board: Board, notice: str, *, keys: str = ""):
        self._board = board
        self._keys = f"{keys} · " if keys else ""
        self.notice = notice
        self.typed = ""

    def __rich__(self) -> Layout:
        layout, debaters = Layout(), Layout(ratio=5)
        debaters.split_row(*(Layout(_Column(who)) for who in self._board.debaters.values()))
        moderator = Layout(_Column(self._board.moderator), ratio=2, minimum_size=7)
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
            _Tail(prompt),
            subtitle=Text(f"Enter: debate it · {self._keys}Ctrl-C: quit", style="dim"),
            subtitle_align="right",
            border_style="dim",
            padding=(0, 1),
        )


class _Column:
    """One speaker: its text, and below it its state."""

    def __init__(self, speaker: Speaker):
        self._speaker = speaker

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        color = _COLORS[self._speaker.name]
        border = color if self._speaker.busy else f"dim {color}"
        yield Panel(
            _Tail(self._said(color)),
            title=Text(self._speaker.name.upper(), style=f"bold {color}"),
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
                text.append(" ■", style=_STOPPED)
            case State.FAILED:
                text.append(
                    f"\n{self._speaker.problem}" if text else self._speaker.problem, _STOPPED
                )
        return text

    def _status(self, color: str, *, room: int) -> Text:
        speaker = self._speaker
        if speaker.state is State.SILENT:
            return Text()
        if speaker.state in (State.STOPPED, State.FAILED):
            color = _STOPPED
        label, time, tokens = _LABELS[speaker.state], f"{speaker.seconds:.1f} s", speaker.tokens
        if speaker.name == "moderator":
            label = label.replace("arguing", "speaking")
        full = f"{label}  {time}  {tokens} tokens"
        fitting = full if len(full) <= room else f"{label}  {time}"
        return Text(fitting if len(fitting) <= room else f"{label.split(' by')[0]}  {time}", color)


class _Tail:
    """The last lines of a text that fit into the room."""

    def __init__(self, text: Text):
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self._text.wrap(console, options.max_width)
        yield Text("\n").join(lines[-(options.height or 1) :])
