"""A client that types to a bot over WebRTC, as the page of the voice bot does."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import aioice.ice
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

Answer = Callable[[dict[str, str]], Awaitable[dict[str, str]]]


class TypingClient:
    """Connects with the bot's answer to its WebRTC offer, and keeps the bot's messages."""

    def __init__(self, answer: Answer):
        if not aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True):
            pytest.skip("WebRTC needs a network interface beside loopback")
        self._answer = answer
        self._changed = asyncio.Event()
        self.messages: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        self._peer = RTCPeerConnection()
        self._peer.on("connectionstatechange", self._notify)
        self._channel = self._peer.createDataChannel("rtvi")
        self._channel.on("message", self._receive)
        self._channel.on(
            "open", lambda: self.tell("client-ready", {"version": "2.0.0", "about": {}})
        )
        self._add_tracks()
        await self._peer.setLocalDescription(await self._peer.createOffer())
        offer = self._peer.localDescription
        answer = await self._answer({"sdp": offer.sdp, "type": offer.type})
        await self._peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
        await self.until(lambda: bool(self.of_type("bot-ready")))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._peer.close()

    @property
    def left(self) -> bool:
        """Whether the bot has closed the connection."""
        return self._peer.connectionState in ("closed", "failed")

    @property
    def read(self) -> str:
        """All text of the bot's LLM, word by word."""
        return "".join(data["text"] for data in self.of_type("bot-llm-text"))

    @property
    def shown(self) -> str:
        """The same text as Pipecat's own page shows it: in sentences."""
        return " ".join(data["text"].strip() for data in self.of_type("bot-output"))

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """The data of the messages of a type."""
        return [m.get("data") or {} for m in self.messages if m.get("type") == kind]

    def type(self, text: str) -> None:
        self.tell("send-text", {"content": text})

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        """Send a message of RTVI."""
        message = {"label": "rtvi-ai", "type": kind, "id": str(len(self.messages)), "data": data}
        self._channel.send(json.dumps(message))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the received messages holds."""
        async with asyncio.timeout(100):
            while not condition():
                await self._changed.wait()

    def _add_tracks(self) -> None:
        """Add sound to the connection, in a client that has some."""

    def _receive(self, message: str) -> None:
        self.messages.append(json.loads(message))
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
