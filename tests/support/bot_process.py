"""A bot as a process of its own; `make voice` runs that of the debate in the same way."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

#: Major and minor of the Pipecat that is tested.
PIPECAT = tuple(int(part) for part in version("pipecat-ai").split(".")[:2])

ROOT = Path(__file__).parents[2]
SPEAKING_BOT = [sys.executable, "-m", "examples.debate.bot"]
BOT = [*SPEAKING_BOT, "--typed"]
RECEPTIONIST = [sys.executable, "-m", "examples.receptionist.call"]
KEYS = (
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"),
    *("DEEPGRAM_API_KEY", "CARTESIA_API_KEY"),
    *("DEBATE_LLM", "DEBATE_LLM_URL"),
)


def bot_environment(**variables: str) -> dict[str, str]:
    """The environment of this process without the user's keys, and with the variables of a test."""
    inherited = {name: value for name, value in os.environ.items() if name not in KEYS}
    # The bot and its scripted LLM are not behind an HTTP proxy.
    return {**inherited, "NO_PROXY": "*", "no_proxy": "*", **variables}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class BotProcess:
    """Starts the bot on loopback, and waits until it serves."""

    def __init__(self, command: Sequence[str] = BOT, **variables: str):
        self._command = command
        self._variables = variables
        self._port = free_port()
        self._log: list[str] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def log(self) -> str:
        """The output so far."""
        return "".join(self._log)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the process, and wait until it serves; again after it was stopped or killed."""
        self._log = []
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            *("--host", "127.0.0.1", "--port", str(self._port)),
            cwd=ROOT,
            env=bot_environment(**self._variables),
            stdout=PIPE,
            stderr=STDOUT,
        )
        while "Uvicorn running on" not in self.log:
            line = await self._output.readline()
            assert line, f"the bot has ended:\n{self.log}"
            self._log.append(line.decode(errors="replace"))
        self._reading = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """Have the process end, and wait until it has."""
        self._process.terminate()
        await self._process.wait()
        await self._reading

    async def kill(self) -> None:
        """End the process at once, as a crash does."""
        self._process.kill()
        await self._process.wait()
        await self._reading

    @property
    def _output(self) -> asyncio.StreamReader:
        assert self._process.stdout is not None
        return self._process.stdout

    async def _read(self) -> None:
        async for line in self._output:
            self._log.append(line.decode(errors="replace"))
