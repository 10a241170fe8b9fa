"""The terminal demo: plain, interrupted, at a terminal, and with a provider that fails."""

import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pipecat.bus.messages import (
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
    BusJobStreamDataMessage,
    BusMessage,
)
from pipecat.workers import runner
from rich.console import Console
from support.terminal import Terminal

from examples.debate.board import Board, Speaker, State, count
from examples.debate.picture import take_picture
from examples.debate.plain import play
from examples.debate.screen import Screen
from examples.debate.script import write_script
from examples.debate.stage import Provider, debate, find_provider
from examples.debate.workers import DEBATERS, Moderator
from pipecat_jobs import JobStatus
from pipecat_jobs.testing import (
    ChaosBus,
    Disconnect,
    Failure,
    LLMRequest,
    Reply,
    ScriptedLLMServer,
    Stall,
    Text,
    ToolCall,
)

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "examples.debate"]

STREAM = BusJobStreamDataMessage
RESPONSE = BusJobResponseMessage | BusJobResponseUrgentMessage


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    # The scripted server is not behind an HTTP proxy; the change is undone after the test.
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedLLMServer]:
    async with ScriptedLLMServer() as server:
        yield server


@pytest.fixture
async def stage(server: ScriptedLLMServer) -> AsyncIterator[tuple[Moderator, Board]]:
    async with debate(Provider("scripted", "scripted", "none", server.base_url)) as stage:
        yield stage


def script_debaters(server: ScriptedLLMServer, reply: Reply, *names: str) -> None:
    """Script the answer of some of the debaters, or of all."""
    for name in names or DEBATERS:
        server.on(DEBATERS[name], reply)


def of_debaters(server: ScriptedLLMServer) -> list[LLMRequest]:
    return [request for request in server.requests if not request.tools]


def states(board: Board) -> dict[str, State]:
    return {speaker.name: speaker.state for speaker in board.speakers}


def without_nltk(stderr: str) -> str:
    # Pipecat 1.8 downloads data for NLTK, which prints a message without a network.
    lines = stderr.splitlines()
    return "\n".join(line for line in lines if not line.startswith("[nltk_data]"))


# Plain


def test_without_a_terminal_it_plays_one_debate_and_exits():
    result = subprocess.run(
        DEMO, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=250
    )

    assert result.returncode == 0
    assert without_nltk(result.stderr) == ""
    notice, _, topic, *_ = result.stdout.splitlines()
    assert notice == "No OPENAI_API_KEY: a scripted model answers."
    assert topic == "Topic: Should AI be regulated?"
    for role in ("ADVOCATE", "CRITIC", "ANALYST", "MODERATOR"):
        assert re.search(rf"^{role} \(done, \d+\.\d s\)$", result.stdout, re.MULTILINE)
    _, summary = result.stdout.split("MODERATOR")
    assert "On “Should AI be regulated?” here is what I heard." in summary


async def test_an_api_key_is_used_with_its_url_and_model(
    server: ScriptedLLMServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    write_script(server, tempo=0)
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_MODEL", "a model")

    assert await play("May cats vote?") == 0

    assert capsys.readouterr().out.startswith("a model at 127.0.0.1:")
    assert [request.model for request in server.requests] == ["a model"] * 5


async def test_without_a_url_the_api_key_is_for_openai(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a key")

    async with find_provider() as provider:
        assert provider.base_url is None
        assert provider.notice.endswith(" at api.openai.com")


async def test_a_debater_that_fails_is_named_and_the_others_go_on(
    server: ScriptedLLMServer, stage: tuple[Moderator, Board]
):
    moderator, board = stage
    script_debaters(server, Failure(500, "out of order"), "critic")
    write_script(server, tempo=0)

    await moderator.interrupt_with("May cats vote?")
    await board.until(lambda: board.moderator.ended)

    assert board.debaters["advocate"].problem == ""
    assert states(board) == {
        "advocate": State.DONE,
        "critic": State.FAILED,
        "analyst": State.DONE,
        "moderator": State.DONE,
    }
    assert "out of order" in board.debaters["critic"].problem
    assert "The critic had no answer." in board.moderator.text


async def test_a_broken_connection_fails_the_debater(
    server: ScriptedLLMServer, stage: tuple[Moderator, Board]
):
    moderator, board = stage
    script_debaters(server, Disconnect(after="I hold that"), "analyst")
    write_script(server, tempo=0)

    await moderator.interrupt_with("May cats vote?")
    await board.until(lambda: board.moderator.ended)

    analyst = board.debaters["analyst"]
    assert (analyst.state, analyst.text) == (State.FAILED, "I hold that")


@pytest.mark.parametrize("failing", ["critic", "moderator"])
async def test_plain_mode_reports_a_failure_and_exits_with_1(
    failing: str,
    server: ScriptedLLMServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    server.on(DEBATERS.get(failing, "You moderate"), Failure(401, "wrong key"))
    write_script(server, tempo=0)
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

    assert await play("May cats vote?") == 1

    printed = capsys.readouterr()
    assert f"\n{failing.upper()} (failed, " in printed.out
    assert re.search(rf"^The {failing} failed: .*wrong key", printed.err, re.MULTILINE)


# A model that does not call the tool


async def test_an_answer_without_a_debate_is_reported(
    server: ScriptedLLMServer, stage: tuple[Moderator, Board]
):
    moderator, board = stage
    call = ToolCall("debate", {"topic": "Cats"})
    server.on("You moderate", Text("Cats? Why not."), call, Text("All three spoke."))
    script_debaters(server, Text("Well."))

    await moderator.interrupt_with("May cats vote?")
    await board.until(lambda: board.moderator.ended)
    assert board.undebated
    shown = draw(Screen(board, ""))
    assert "Cats? Why not." in shown
    assert "it did not call the debaters" in shown

    await moderator.interrupt_with("Debate it.")
    await board.until(lambda: board.moderator.ended)
    assert board.topic == "Cats"
    assert not board.undebated


@pytest.mark.parametrize("stopped", ["by the user", "by an error"])
async def test_a_moderator_that_is_stopped_early_is_not_said_to_answer_alone(
    stopped: str, server: ScriptedLLMServer, stage: tuple[Moderator, Board]
):
    moderator, board = stage
    server.on("You moderate", Stall("Cats") if stopped == "by the user" else Failure(500, "no"))

    await moderator.interrupt_with("May cats vote?")
    if stopped == "by the user":
        await board.until(lambda: "Cats" in board.moderator.text)
        await moderator.interrupt()
        await server.requests[0].wait_hung_up()
    await board.until(lambda: board.moderator.ended)

    assert not board.undebated


async def test_plain_mode_reports_an_answer_without_a_debate(
    server: ScriptedLLMServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    server.on("You moderate", Text("Cats? Why not."))
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

    assert await play("May cats vote?") == 0

    printed = " ".join(capsys.readouterr().out.split())
    assert printed.endswith("or set OPENAI_MODEL to a model that calls tools.")


# Interrupted


async def test_an_interruption_closes_all_three_connections_and_the_next_debate_is_separate(
    server: ScriptedLLMServer, stage: tuple[Moderator, Board]
):
    moderator, board = stage
    endless = Text("word " * 10_000, pace=0.002)

    def argue(request: LLMRequest) -> Reply:
        return endless if "cats" in request.last_user_text else Text(request.last_user_text)

    script_debaters(server, argue)
    write_script(server, tempo=0)

    await moderator.interrupt_with("May cats vote?")
    await board.until(lambda: all(who.tokens > 5 for who in board.debaters.values()))
    await moderator.interrupt()
    interrupted = of_debaters(server)
    async with asyncio.timeout(100):
        for request in interrupted:
            await request.wait_hung_up()
    await board.until(lambda: board.quiet)

    assert set(states(board).values()) == {State.STOPPED}
    sent = [len(request.sent) for request in interrupted]
    said = {name: who.text for name, who in board.debaters.items()}
    assert all(endless.text.startswith(text) for text in said.values())

    await moderator.interrupt_with("May dogs vote?")
    await board.until(lambda: board.moderator.ended)

    assert set(states(board).values()) == {State.DONE}
    assert {who.text for who in board.debaters.values()} == {"Topic: May dogs vote?"}
    assert [len(request.sent) for request in interrupted] == sent
    assert len(of_debaters(server)) == 6


async def test_consecutive_topics_never_get_each_others_answers(
    server: ScriptedLLMServer, stage: tuple[Moderator, Board]
):
    moderator, board = stage
    script_debaters(server, lambda request: Text(f"{request.last_user_text}; " * 20, pace=0.0005))
    write_script(server, tempo=0)

    for number in range(20):
        topic = f"Number {number}"
        await moderator.interrupt_with(topic)
        if number % 2:
            # Each debate is interrupted a little later than the one before.
            await board.until(
                lambda topic=topic, reached=number * 3: (
                    board.topic == topic
                    and sum(who.tokens for who in board.debaters.values()) >= reached
                )
            )
    await moderator.interrupt_with("The last")
    await board.until(lambda: board.topic == "The last" and board.moderator.ended)

    assert {who.text for who in board.debaters.values()} == {"Topic: The last; " * 20}
    assert set(states(board).values()) == {State.DONE}
    assert "On “The last” here is what I heard." in board.moderator.text


async def test_text_of_a_stopped_debater_is_not_shown_under_the_next_topic(
    server: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch
):
    bus = ChaosBus()
    monkeypatch.setattr(runner, "AsyncQueueBus", lambda: bus)
    endless = Text("cats " * 10_000, pace=0.002)
    script_debaters(
        server, lambda request: endless if "cats" in request.last_user_text else Text("Dogs.")
    )
    write_script(server, tempo=0)

    async with debate(Provider("scripted", "scripted", "none", server.base_url)) as stage:
        moderator, board = stage
        await moderator.interrupt_with("May cats vote?")
        await board.until(lambda: all(who.tokens for who in board.debaters.values()))
        [stopped] = moderator.job_groups

        def is_late(message: BusMessage) -> bool:
            return isinstance(message, STREAM | RESPONSE) and message.job_id == stopped

        def is_response(message: BusMessage) -> bool:
            return isinstance(message, RESPONSE) and message.status == JobStatus.COMPLETED

        late, responses = bus.hold(is_late), bus.hold(is_response)
        await late.wait()
        await moderator.interrupt_with("May dogs vote?")
        await bus.wait_for(lambda message: is_late(message) and isinstance(message, RESPONSE), 3)
        await board.until(lambda: board.topic == "May dogs vote?")
        late.release()
        # The responses arrive last, so that the debate ends with the test.
        await responses.wait(3)
        responses.release()
        await board.until(lambda: board.moderator.ended)

        assert {who.text for who in board.debaters.values()} == {"Dogs."}
        assert set(states(board).values()) == {State.DONE}


@pytest.mark.parametrize("typed", ["in the summary", "before the first word"])
async def test_the_moderator_can_be_stopped_at_any_step(
    typed: str, server: ScriptedLLMServer, stage: tuple[Moderator, Board]
):
    moderator, board = stage
    if typed == "before the first word":
        server.on("You moderate", Stall())
        await moderator.interrupt_with("May cats vote?")
        await server.wait_for_requests(1)
    else:
        server.on("You moderate", ToolCall("debate", {"topic": "Cats"}), Stall("On the whole"))
        script_debaters(server, Text("Well."))
        await moderator.interrupt_with("May cats vote?")
        await board.until(lambda: "whole" in board.moderator.text)

    await moderator.interrupt()
    async with asyncio.timeout(100):
        await server.requests[-1].wait_hung_up()

    assert board.quiet
    assert board.moderator.state is State.STOPPED


async def test_the_moderators_llm_gets_the_response_of_each_debater(
    server: ScriptedLLMServer, stage: tuple[Moderator, Board]
):
    moderator, board = stage
    for name in DEBATERS:
        script_debaters(server, Text(f"I am the {name}."), name)
    write_script(server, tempo=0)

    await moderator.interrupt_with("Please debate whether cats may vote")
    await board.until(lambda: board.moderator.ended)

    assert board.topic == "Cats may vote"
    (result,) = [m["content"] for m in server.requests[-1].messages if m["role"] == "tool"]
    assert json.loads(result) == {
        "answers": {name: {"text": f"I am the {name}."} for name in DEBATERS}
    }


async def test_leaving_in_mid_debate_leaves_nothing_behind(server: ScriptedLLMServer):
    script_debaters(server, Stall("I hold"))
    write_script(server, tempo=0)
    before = asyncio.all_tasks()

    provider = Provider("scripted", "scripted", "none", server.base_url)
    async with debate(provider) as (moderator, board):
        await moderator.interrupt_with("May cats vote?")
        await board.until(lambda: all(who.tokens for who in board.debaters.values()))

    async with asyncio.timeout(100):
        for request in of_debaters(server):
            await request.wait_hung_up()
    await server.stop()
    assert asyncio.all_tasks() <= before


# On the screen


def draw(screen: Screen, *, width: int = 80, height: int = 24) -> str:
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    console.print(screen)
    return console.file.getvalue()


async def test_a_long_text_shows_its_newest_lines_and_can_be_scrolled_back():
    board = Board()
    board.open("Cats")
    board.hear("critic", " ".join(f"line{number:02}xxxxxxxxxxxx" for number in range(30)))
    screen = Screen(board, "")

    newest = draw(screen)
    assert "line29" in newest
    assert "↑ 22 lines" in newest

    screen.scroll(5)
    assert "line29" not in draw(screen)
    assert "↓ 6 lines" in draw(screen)

    screen.scroll(1000)
    oldest = draw(screen)
    assert "line00" in oldest
    assert not re.search(r"↑ \d", oldest)

    screen.scroll(-1000)
    newest = draw(screen)
    assert "line29" in newest
    assert not re.search(r"↓ \d", newest)


async def test_a_speech_that_is_interrupted_shows_where():
    board = Board()
    board.open("Cats")
    board.hear("critic", "No, because")
    board.stop()

    assert "No, because ■ cut here" in draw(Screen(board, ""))


@pytest.mark.parametrize(
    ("number", "noun", "written"),
    [
        (0, "word", "0 words"),
        (1, "word", "1 word"),
        (2, "word", "2 words"),
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
    ],
)
def test_a_number_has_its_noun_in_the_right_form(number: int, noun: str, written: str):
    assert count(number, noun) == written


async def test_a_status_counts_words():
    board = Board()
    board.open("Cats")
    board.hear("critic", "No")
    assert "1 word " in draw(Screen(board, ""), width=120)
    board.hear("critic", ", because")
    assert "2 words " in draw(Screen(board, ""), width=120)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(("width", "height"), [(20, 8), (80, 24), (110, 36), (200, 50)])
async def test_the_screen_fits_its_terminal(state: State, width: int, height: int):
    board = Board()
    board.open("Is a topic that is longer than the whole terminal is wide still a topic? " * 4)
    board.moderator = Speaker("moderator")
    for speaker in board.speakers:
        speaker.text, speaker.problem, speaker.state = "lorem ipsum " * 99 + "END", "why", state
    screen = Screen(board, "a notice " * 20)
    screen.typed = "typing and typing " * 20
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)

    console.print(screen)

    lines = console.file.getvalue().splitlines()
    assert len(lines) == height
    assert {len(line) for line in lines} <= {width}
    if height >= 24:
        assert sum(line.count("END") for line in lines) == 4


async def test_the_picture_shows_every_debater():
    picture = await take_picture(tempo=0)

    assert picture.startswith("<svg")
    for text in ("ADVOCATE", "CRITIC", "ANALYST", "MODERATOR", "done", "speaking"):
        assert text in picture


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    pytest.importorskip("termios", reason="there are no such terminals on Windows")
    terminal = Terminal(*DEMO)
    yield terminal
    terminal.close()


def test_the_first_frame_is_drawn_before_pipecat_is_imported():
    pytest.importorskip("termios", reason="there are no such terminals on Windows")
    begun = time.monotonic()
    # Python prints each module that it has imported.
    terminal = Terminal(sys.executable, "-X", "importtime", "-m", "examples.debate")
    try:
        terminal.wait_for("starting…")
        seconds = time.monotonic() - begun
        before, _, _ = terminal.shown.partition("starting…")
        assert " rich\r\n" in before
        assert " pipecat\r\n" not in before
        terminal.wait_for(" pipecat\r\n")
    finally:
        terminal.close()
    # It takes 0.3 s of an idle machine.
    assert seconds < 10


def test_what_is_typed_before_it_is_ready_is_not_lost(terminal: Terminal):
    terminal.type("May cats ")
    terminal.wait_for("starting…")
    terminal.type("vote?\r")
    terminal.wait_for(" May cats vote? ", "● arguing")


def test_leaving_before_it_is_ready_restores_the_terminal(terminal: Terminal):
    terminal.wait_for("starting…")
    terminal.type("\x03")
    assert terminal.wait_exit() == 0
    assert terminal.is_as_before
    assert "Traceback" not in terminal.unread


def test_at_a_terminal_typing_stops_the_debate_and_enter_starts_the_next(terminal: Terminal):
    terminal.wait_for("No OPENAI_API_KEY: a scripted model answers", "Should AI be regulated?")
    terminal.wait_for("─ ADVOCATE ─", "─ CRITIC ─", "─ ANALYST ─", "─ MODERATOR ─")
    terminal.wait_for("● arguing", "● arguing", "● arguing", "○ listening")

    terminal.type("May catz\x7fs \x1b[Avote?")
    terminal.wait_for("■ stopped", "■ stopped", "■ stopped", "■ stopped by you")
    terminal.wait_for("› May cats vote?▌")

    terminal.type("\r")
    terminal.wait_for(" May cats vote? ", "● arguing", "● arguing", "● arguing")
    terminal.wait_for("✓ done", "✓ done", "✓ done", "On “May cats vote?”", "✓ done")

    terminal.type("\x03")
    assert terminal.wait_exit() == 0
    assert terminal.is_as_before


@pytest.mark.parametrize(
    "way",
    [
        "\x03",
        *(pytest.param(way, marks=pytest.mark.slow) for way in ("\x04", "q\r", signal.SIGTERM)),
    ],
)
def test_every_exit_restores_the_terminal(way: str | signal.Signals, terminal: Terminal):
    terminal.wait_for("● arguing")
    assert not terminal.is_as_before

    if isinstance(way, str):
        terminal.type(way)
        expected = 0
    else:
        terminal.process.send_signal(way)
        expected = 128 + way

    assert terminal.wait_exit() == expected
    assert terminal.is_as_before
    assert "\x1b[?25h" in terminal.unread  # The cursor is shown.
    assert "\x1b[?1049l" in terminal.unread  # The shell's own screen is restored.
    assert "Traceback" not in terminal.unread
