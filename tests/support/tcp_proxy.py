"""A proxy between a bus and its server that delays or drops data, and cuts connections."""

import asyncio
import contextlib
import ssl
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class TcpProxy:
    """Listens at a port of this machine, in front of a server on a unix socket.

    Args:
        url: The URL of the server.
        tls: The TLS context of the proxy; None for plain connections.
    """

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None):
        self._socket = urlsplit(url).path
        self._tls = tls
        self._writers: set[asyncio.StreamWriter] = set()
        self._forsaken: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.delay = 0.0
        """Seconds that each piece of data is held back, in either direction."""
        self.swallows_replies = False
        """Whether what the server says goes nowhere."""
        self.connected = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"redis{'s' if self._tls else ''}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.reset()
        self._server.close()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def leads_to(self, url: str) -> None:
        """Have new connections lead to another server."""
        self._socket = urlsplit(url).path

    def reset(self) -> None:
        """Cut every connection; data on its way is lost."""
        for writer in list(self._writers):
            writer.transport.abort()

    def forsake(self) -> None:
        """Pass on no more replies over the existing connections."""
        self._forsaken |= self._writers

    def stall(self) -> None:
        """Read nothing more from the existing connections, not even their end."""
        for writer in self._writers:
            writer.transport.pause_reading()  # type: ignore[attr-defined]

    def block(self) -> None:
        """Pass no data, and keep the connections open."""
        self._open.clear()

    def unblock(self) -> None:
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.set()
        server_reader, server_writer = await asyncio.open_unix_connection(self._socket)
        self._writers |= {writer, server_writer}
        pumps = [
            asyncio.create_task(self._pump(reader, server_writer, replies=False)),
            asyncio.create_task(self._pump(server_reader, writer, replies=True)),
        ]
        self._pumps.update(pumps)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, server_writer):
            end.close()
            self._writers.discard(end)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._open.wait()
                if not (replies and (self.swallows_replies or writer in self._forsaken)):
                    writer.write(data)
                    await writer.drain()
