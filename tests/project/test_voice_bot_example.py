"""The voice bot of one file: it starts on Pipecat's runner, and its two tools do their jobs."""

import asyncio
import re
import sys
from pathlib import Path

import aiohttp
import pytest
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.runner.types import SmallWebRTCRunnerArguments
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from support.bot_process import KEYS, ROOT, BotProcess
from support.recognition import needs_whisper
from support.sentences import no_rules_of_sentences
from support.sound import speech
from support.speaking_client import SpeakingClient
from support.typing_client import TypingClient

from examples import voice_bot
from examples.debate.speech import Captions
from examples.voice_script import ASKING, HELLO, UNSURE, answer
from pipecat_jobs.testing import ToolCall, ToolCalls

__all__ = ["no_rules_of_sentences"]

WEATHER = "Sunny in Oslo, 21 degrees."
BOOKED = "The table for 2 is booked, it is the one at the window."


async def test_the_weather_is_answered_while_the_table_is_booked(monkeypatch: pytest.MonkeyPatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(voice_bot, "make_stt", IdentityFilter)
    monkeypatch.setattr(voice_bot, "make_tts", Captions)
    before = asyncio.all_tasks()
    connection = SmallWebRTCConnection()
    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:

        async def connect(offer: dict[str, str]) -> dict[str, str]:
            await connection.initialize(**offer)
            arguments = SmallWebRTCRunnerArguments(webrtc_connection=connection)
            tasks.create_task(voice_bot.bot(arguments))
            answered = connection.get_answer()
            assert answered is not None
            return answered

        async with TypingClient(connect) as client:
            await client.until(lambda: client.read.strip() == HELLO)
            client.type("Please book a table for two.")
            await client.until(lambda: bool(client.of_type("llm-function-call-in-progress")))
            client.type("What is the weather in Oslo?")
            await client.until(lambda: BOOKED in client.read)

    said = [client.read.index(text) for text in (HELLO, ASKING, WEATHER, BOOKED)]
    assert said == sorted(said)
    assert asyncio.all_tasks() <= before


@pytest.mark.slow
@needs_whisper
async def test_the_program_hears_and_speaks_without_a_key():
    command = [sys.executable, "-m", "examples.voice_bot"]
    async with BotProcess(command) as process, aiohttp.ClientSession() as http:

        async def connect(offer: dict[str, str]) -> dict[str, str]:
            async with http.post(f"http://{process.host}/api/offer", json=offer) as response:
                return await response.json()

        async with SpeakingClient(connect) as client:
            await client.until(lambda: bool(client.of_type("bot-stopped-speaking")))
            await client.say(await speech("What is the weather in Oslo?"))
            await client.until(lambda: "Sunny in" in client.read)


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        ("Do you like cats?", UNSURE),
        ("What is the weather in Oslo?", ToolCalls(ToolCall("forecast", {"city": "Oslo"}))),
    ],
)
def test_the_script_answers_a_user_who_interrupts_the_greeting(words: str, reply: str | ToolCalls):
    context = LLMContext([{"role": "developer", "content": voice_bot.GREETING}])
    context.add_message({"role": "user", "content": words})
    assert answer(context.get_messages()) == reply


def test_the_bot_takes_fewer_than_150_lines():
    assert len(Path(voice_bot.__file__).read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize("file", ["examples/voice_bot.py", "examples/debate/voice.py"])
def test_the_page_shows_parts_of_the_examples(file: str):
    page = (ROOT / "docs/how-to/voice-bot.md").read_text(encoding="utf-8")
    title = f"part of {Path(file).name}"
    parts = re.findall(rf'^```python title="{title}"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    source = _lines((ROOT / file).read_text(encoding="utf-8"))

    assert parts
    for part in parts:
        assert _lines(part) in source, part


def _lines(code: str) -> str:
    """Code without what depends on where it stands: indentation and blank lines."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())
