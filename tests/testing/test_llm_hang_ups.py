import asyncio

import openai
import pytest
from openai import AsyncOpenAI
from support.llm_client import ask_default, open_stream, read_tokens

from pipecat_jobs.testing.llm_server import (
    Disconnect,
    ScriptedLLMServer,
    Stall,
    Text,
)

# Connections that end early


async def test_a_hang_up_during_a_stall_is_noticed(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply(Stall("Let me"))

    async with await open_stream(client) as stream:
        assert await read_tokens(stream, 2) == ["Let", " me"]
        (request,) = server.requests
        assert request.outcome == "streaming"
        assert request.hung_up_at is None

    await request.wait_hung_up()
    assert request.outcome == "hung_up"
    assert request.hung_up_at == request.ended_at
    assert request.sent_text == "Let me"


async def test_a_hang_up_between_paced_tokens_is_noticed(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    # The pace is slower than the test: the hang-up has to be noticed between two tokens.
    server.reply(Text("one two", pace=3600))

    async with await open_stream(client):
        (request,) = await server.wait_for_requests(1)
        await request.wait_token(1)

    await request.wait_hung_up()
    assert request.sent == ["one"]
    with pytest.raises(RuntimeError, match="ended before 2 tokens were sent"):
        await request.wait_token(2)


async def test_a_hang_up_in_an_unpaced_stream_is_noticed(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply("word " * 100_000)

    async with await open_stream(client) as stream:
        await read_tokens(stream, 3)

    (request,) = server.requests
    await request.wait_hung_up()
    sent = len(request.sent)
    await ask_default(server, client)
    assert 3 <= sent == len(request.sent) < 100_000


async def test_a_hang_up_before_the_first_token_is_noticed(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply(Text("late", first_token_after=3600))

    async with await open_stream(client):
        pass

    (request,) = server.requests
    await request.wait_hung_up()
    assert request.first_token_at is None
    assert request.sent == []


async def test_a_hang_up_without_a_stream_is_noticed(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply(Stall())
    asking = asyncio.create_task(
        client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "hi"}]
        )
    )
    (request,) = await server.wait_for_requests(1)

    asking.cancel()

    await request.wait_hung_up()
    assert request.sent == []
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_scripted_disconnect_breaks_off_the_stream(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply(Disconnect("Let me"))

    async with await open_stream(client) as stream:
        assert await read_tokens(stream, 2) == ["Let", " me"]
        # The message depends on the client's release: before openai 3 it is that of httpx.
        with pytest.raises(Exception, match=r"incomplete chunked read|Connection error"):
            await anext(stream)

    (request,) = server.requests
    assert request.outcome == "disconnected"
    with pytest.raises(RuntimeError, match="ended before the client hung up"):
        await request.wait_hung_up()
    await ask_default(server, client)


async def test_a_scripted_disconnect_without_a_stream_fails_the_request(
    server: ScriptedLLMServer,
) -> None:
    server.reply(Disconnect())

    async with AsyncOpenAI(api_key="test", base_url=server.base_url, max_retries=0) as client:
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "hi"}]
            )

    assert server.requests[0].outcome == "disconnected"


async def test_a_client_that_disconnects_during_its_request_is_handled(
    server: ScriptedLLMServer, client: AsyncOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()

    await ask_default(server, client)
    assert [record for record in caplog.records if record.name.startswith("aiohttp")] == []
