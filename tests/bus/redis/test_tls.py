"""``RedisStreamsBus`` over TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from redis.asyncio import Redis
from support.redis.processes import Member, assert_nothing_remains, redis, redis_server, until
from support.tcp_proxy import TcpProxy
from support.workers import Requester, Responder

from pipecat_jobs import BusUnavailableError
from pipecat_jobs.bus._distributed.engine import UnreachableError
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.redis.link import Link

__all__ = ["redis", "redis_server"]


class Front(TcpProxy):
    """Speaks TLS in front of a server, with a certificate of its own authority."""

    def __init__(self, server: EmbeddedRedis, folder: Path, issued_to: str = "127.0.0.1"):
        authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(issued_to).configure_cert(context)
        super().__init__(server.url, tls=context)
        self.trusted = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.trusted))

    @property
    def trusting_url(self) -> str:
        return f"{self.url}?ssl_ca_certs={self.trusted}&ssl_check_hostname=true"


@pytest.fixture
async def front(redis_server: EmbeddedRedis, tmp_path: Path) -> AsyncIterator[Front]:
    async with Front(redis_server, tmp_path) as front:
        yield front


async def test_jobs_and_streams_cross_processes_over_tls(front: Front, redis: Redis):
    async with (
        Member(front.trusting_url, requester := Requester()) as member,
        Member(front.trusting_url, Responder()),
    ):
        await member.wait_until_known("responder")
        # The payload is longer than one TLS record.
        payload = {"text": "x" * 100_000}
        assert (await requester.ask("responder", "echo", payload=payload, timeout=60))[
            "payload"
        ] == payload
        async with requester.job("responder", name="count", payload={"to": 50}, timeout=60) as j:
            numbers = [event.data["number"] async for event in j if event.data]
        assert numbers == list(range(50))
    await assert_nothing_remains(redis)


@pytest.mark.parametrize("kind", ["an unknown authority", "another host"])
async def test_a_certificate_that_is_not_trusted_is_an_error_at_the_start_that_says_so(
    redis_server: EmbeddedRedis, tmp_path: Path, redis: Redis, kind: str
):
    other_host = kind == "another host"
    async with Front(
        redis_server, tmp_path, "redis.example" if other_host else "127.0.0.1"
    ) as front:
        url = front.trusting_url if other_host else f"{front.url}?ssl_check_hostname=true"
        with pytest.raises(BusUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            await Member(url, start_timeout=1.0).runner.run()
    await assert_nothing_remains(redis)


async def test_tls_connections_that_are_cut_are_opened_again(
    front: Front, redis_server: EmbeddedRedis
):
    async with (
        Member(front.trusting_url, requester := Requester(), lease=5.0) as member,
        Member(redis_server.url, responder := Responder(), lease=5.0),
    ):
        await member.wait_until_known("responder")
        asking = asyncio.create_task(requester.ask("responder", "wait", timeout=20))
        await responder.started.get()
        front.reset()
        responder.release.set()
        assert await asking == {"from": "responder"}
        assert await requester.ask("responder", "echo", timeout=20)
        await until(lambda: member.bus.stats.reconnects)
        assert (member.bus.stats.expulsions, member.bus.stats.lost) == (0, 0)


async def test_a_tls_connection_that_hangs_is_closed_without_a_tls_goodbye(front: Front):
    """An orderly close waits for the other side's close_notify."""
    async with Redis.from_url(front.trusting_url) as client:
        link = Link(client, timeout=2)
        assert await link.call(("PING",)) == [b"PONG"]
        front.stall()
        async with asyncio.timeout(100):
            with pytest.raises(UnreachableError):
                await link.call(("PING",))
            assert await link.call(("PING",)) == [b"PONG"]
            front.stall()
            await link.close()


async def test_a_client_with_tls_and_a_user_gives_its_settings_to_the_bus(
    front: Front, redis: Redis
):
    rights = ["on", ">pw", "~pipecat-jobs:*", "+@all"]
    await redis.execute_command("ACL", "SETUSER", "bus", *rights)
    await redis.execute_command("ACL", "SETUSER", "default", "nopass", "-@all", "+@connection")
    client = Redis(
        host="127.0.0.1",
        port=front.port,
        username="bus",
        password="pw",
        ssl=True,
        ssl_ca_certs=str(front.trusted),
        ssl_check_hostname=True,
    )
    async with (
        client,
        Member(client, requester := Requester()) as member,
        Member(client, Responder()),
    ):
        await member.wait_until_known("responder")
        assert await requester.ask("responder", "echo", timeout=60)
