"""A bot with a transport whose client is the test."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from pipecat.frames.frames import (
    InputTransportMessageFrame,
    OutputTransportMessageFrame,
    OutputTransportMessageUrgentFrame,
    StartFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams

from pipecat_jobs import PipelineWorker

Message = dict[str, Any]


class _Input(BaseInputTransport):
    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)


class _Output(BaseOutputTransport):
    def __init__(self, client: "Client") -> None:
        super().__init__(TransportParams())
        self._client = client

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def send_message(
        self, frame: OutputTransportMessageFrame | OutputTransportMessageUrgentFrame
    ) -> None:
        # As transports do: a message that is not JSON fails here.
        self._client.take(json.loads(json.dumps(frame.message)))


class Client:
    """A transport, and the client on its other side: what it got, and what it sends."""

    def __init__(self) -> None:
        self._input = _Input(TransportParams())
        self._output = _Output(self)
        self.got: list[Message] = []
        self._news = asyncio.Event()
        self._sent = 0

    def input(self) -> BaseInputTransport:
        return self._input

    def output(self) -> BaseOutputTransport:
        return self._output

    def worker(
        self, worker_class: type[PipecatPipelineWorker] = PipelineWorker, **options: Any
    ) -> Any:
        """Make a worker "bot" whose pipeline has nothing but the transport."""
        return worker_class(Pipeline([self._input, self._output]), name="bot", **options)

    def take(self, message: Message) -> None:
        self.got.append(message)
        self._news.set()

    async def send(self, type: str, data: Any = None) -> str:
        """Send a message; its id is returned."""
        self._sent += 1
        message_id = f"message-{self._sent}"
        message = {"label": "rtvi-ai", "type": type, "id": message_id, "data": data}
        await self._input.broadcast_frame(InputTransportMessageFrame, message=message)
        return message_id

    async def request(self, data: Any, type: str = "pipecat-jobs") -> Message:
        """Send a request, and wait for its response."""
        message_id = await self.send("client-message", {"t": type, "d": data})
        return await self.wait_for(lambda message: message.get("id") == message_id)

    async def connect(self) -> None:
        """Say that the client is ready, and wait until the bot is."""
        before = len(self.of_type("bot-ready"))
        about = {"library": "test"}
        await self.send("client-ready", {"version": "1.0.0", "about": about})
        await self.wait_until(lambda: len(self.of_type("bot-ready")) > before)

    def of_type(self, type: str) -> list[Any]:
        """The data of the messages of a type, in order."""
        return [message.get("data") for message in self.got if message["type"] == type]

    def cards(self) -> list[tuple[Any, ...]]:
        """The card events, in order and shortened."""
        shown: list[tuple[Any, ...]] = []
        for data in self.of_type("ui-job-group"):
            match data["kind"]:
                case "group_started":
                    shown.append(("started", *data["workers"]))
                case "job_update":
                    shown.append(("update", data["worker_name"], data.get("data")))
                case "job_completed":
                    status, response = data["status"], data.get("response")
                    shown.append(("completed", data["worker_name"], status, response))
                case "group_completed":
                    shown.append(("closed",))
        return shown

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on what the client got holds."""
        async with asyncio.timeout(100):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def wait_for(self, condition: Callable[[Message], bool]) -> Message:
        """Wait for a message that the client got or gets."""
        await self.wait_until(lambda: any(condition(message) for message in self.got))
        return next(message for message in self.got if condition(message))
