"""The Redis server that starts and ends with its process."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError
from support.bot_process import free_port
from support.redis.processes import pid_of, wait_exit

from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.redis.embedded import find_server
from pipecat_jobs.errors import RedisStartError


def exists(path: str) -> bool:
    return os.path.exists(path)


@pytest.mark.parametrize("port", [None, "free"])
async def test_a_server_starts_replies_and_leaves_nothing(port: str | None):
    async with EmbeddedRedis(port=free_port() if port else None) as server:
        async with Redis.from_url(server.url) as redis:
            assert await redis.set("key", "value")
            folder = (await redis.config_get("dir"))["dir"]
        assert os.stat(folder).st_mode & 0o077 == 0
        pid = await pid_of(server)
    await wait_exit(pid)
    assert not exists(folder)
    with pytest.raises(RuntimeError, match="before it is started"):
        server.url  # noqa: B018


async def test_only_its_owner_can_read_the_password_in_a_folder_of_the_user(tmp_path: Path):
    os.chmod(tmp_path, 0o755)
    async with EmbeddedRedis(port=free_port(), folder=tmp_path):
        assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0


async def test_a_port_requires_the_password():
    async with EmbeddedRedis(port=free_port()) as server:
        anonymous = Redis.from_url(f"redis://{server.url.rpartition('@')[2]}")
        with pytest.raises(AuthenticationError):
            await anonymous.ping()
        await anonymous.aclose()


async def test_the_server_ends_with_its_process_even_by_sigkill():
    code = (
        "import asyncio\n"
        "from pipecat_jobs.bus.redis import EmbeddedRedis\n"
        "async def main():\n"
        "    server = EmbeddedRedis()\n"
        "    await server.start()\n"
        "    print(server.url, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=PIPE)
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    async with Redis.from_url(url) as redis:
        pid = (await redis.info("server"))["process_id"]
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await asyncio.wait_for(wait_exit(pid), 10)


async def test_writes_that_a_persistent_server_confirmed_survive_sigkill(tmp_path: Path):
    async with EmbeddedRedis(folder=tmp_path, persistent=True) as server:
        async with Redis.from_url(server.url) as redis:
            await redis.set("key", "value")
        pid = await pid_of(server)
        os.kill(pid, signal.SIGKILL)
        await wait_exit(pid)
    async with (
        EmbeddedRedis(folder=tmp_path, persistent=True) as server,
        Redis.from_url(server.url) as redis,
    ):
        assert await redis.get("key") == b"value"


async def test_a_server_that_does_not_start_says_why():
    async with EmbeddedRedis(port=free_port()) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(RedisStartError, match="in use") as caught:
            await EmbeddedRedis(port=port).start()
    assert str(port) in caught.value.output
    with pytest.raises(RedisStartError, match="/nowhere/redis-server"):
        await EmbeddedRedis(executable="/nowhere/redis-server").start()


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_a_server_on_the_path_comes_before_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / name).touch(mode=0o755)
    assert find_server() == str(tmp_path / name)


async def test_the_bundled_server_is_valkey_9_or_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        executable = find_server()
    async with (
        EmbeddedRedis(executable=executable) as server,
        Redis.from_url(server.url) as redis,
    ):
        version = (await redis.info("server"))["valkey_version"]
    assert int(version.partition(".")[0]) >= 9


def test_without_a_server_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))

    def find_no_package(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("pipecat_jobs.bus.redis.embedded.files", find_no_package)
    with pytest.raises(RedisStartError, match=r"pipecat-jobs\[embedded\]"):
        find_server()


async def test_a_server_that_is_still_starting_can_be_ended(tmp_path: Path):
    """Redis ignores a SIGTERM while it starts, and a shell never gets one ignored at its start."""
    server = tmp_path / "server"
    server.write_text(
        "#!/bin/sh\ntrap 'exit 0' TERM\necho Ready to accept connections\n"
        "while :; do sleep 0.01; done\n"
    )
    server.chmod(0o700)
    embedded = EmbeddedRedis(executable=str(server))
    await embedded.start()
    async with asyncio.timeout(100):
        await embedded.stop()
