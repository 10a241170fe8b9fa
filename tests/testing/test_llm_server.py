import asyncio

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI
from support.llm_client import ask, open_stream, read_tokens

from pipecat_jobs.testing.llm_server import (
    Failure,
    LLMRequest,
    Reply,
    ScriptedLLMServer,
    Stall,
    Text,
    ToolCall,
    ToolCalls,
)

# Text


@pytest.mark.parametrize("text", ["Hello there,  world!\n\nBye. ", " leading", "one", "", "  "])
async def test_text_arrives_exactly_as_written(
    server: ScriptedLLMServer, client: AsyncOpenAI, text: str
) -> None:
    server.reply(text)

    assert await ask(client) == text
    (request,) = server.requests
    assert request.sent_text == text
    assert request.outcome == "completed"


async def test_stream_has_the_shape_of_openai(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply("one two")

    async with await open_stream(client, "a b c", system="x y") as stream:
        chunks = [chunk async for chunk in stream]

    assert [chunk.choices[0].delta.content for chunk in chunks[:-1]] == ["", "one", " two", None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (5, 2, 7)


async def test_usage_is_sent_only_on_request(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply("one")

    stream = await client.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    async with stream:
        chunks = [chunk async for chunk in stream]

    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_pace_and_first_token_delay_are_kept(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply(Text("one two three", pace=0.02, first_token_after=0.05))

    await ask(client)

    (request,) = server.requests
    assert request.first_token_at is not None
    assert request.ended_at is not None
    # The loop's clock is coarser than its timers on some platforms.
    assert request.first_token_at - request.arrived_at >= 0.045
    assert request.ended_at - request.first_token_at >= 0.035


async def test_an_answer_without_a_stream_is_sent_whole(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply("Hello there.", ToolCalls(ToolCall("look", {"at": "it"}), text="A moment."))

    text, calls = [
        await client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "hi"}]
        )
        for _ in range(2)
    ]

    assert text.choices[0].message.content == "Hello there."
    assert text.choices[0].finish_reason == "stop"
    assert text.usage is not None
    assert text.usage.total_tokens == 3
    message = calls.choices[0].message
    assert message.content == "A moment."
    assert message.tool_calls is not None
    assert message.tool_calls[0].type == "function"
    assert message.tool_calls[0].function.name == "look"
    assert message.tool_calls[0].function.arguments == '{"at": "it"}'
    assert calls.choices[0].finish_reason == "tool_calls"
    assert [request.sent_text for request in server.requests] == ["Hello there.", "A moment."]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Text("You must", finish_reason="length"), "length"),
        (ToolCalls(ToolCall("look"), text=Text("Hm.", finish_reason="length")), "length"),
        (Text("You must", finish_reason=None), None),
    ],
)
async def test_an_answer_may_end_for_any_reason_or_none(
    server: ScriptedLLMServer, client: AsyncOpenAI, reply: Reply, reason: str | None
):
    server.reply(reply)

    async with await open_stream(client) as stream:
        reasons = [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices]

    assert [given for given in reasons if given] == ([] if reason is None else [reason])
    assert server.requests[0].outcome == "completed"


# Tool calls


async def test_tool_calls_stream_in_pieces(server: ScriptedLLMServer, client: AsyncOpenAI) -> None:
    server.reply(
        ToolCalls(
            ToolCall("get_weather", {"city": "Oslo", "days": [1, 2]}),
            ToolCall("get_time", call_id="call_mine"),
            text="Let me see.",
        )
    )

    async with await open_stream(client) as stream:
        deltas = [chunk.choices[0].delta async for chunk in stream if chunk.choices]

    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    heads = [call for call in calls if call.id]
    assert [(call.index, call.id) for call in heads] == [(0, "call_1"), (1, "call_mine")]
    assert [call.function and call.function.name for call in heads] == ["get_weather", "get_time"]
    pieces = [[call for call in calls if call.index == index] for index in (0, 1)]
    assert len(pieces[0]) > 3
    arguments = [
        "".join(call.function.arguments or "" for call in of_one if call.function)
        for of_one in pieces
    ]
    assert arguments == ['{"city": "Oslo", "days": [1, 2]}', "{}"]


def test_wrong_scripts_are_refused_where_they_are_written() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        ToolCall("look", {"at": object()})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="at least one"):
        ToolCalls()
    with pytest.raises(ValueError, match="400 to 599"):
        Failure(200)
    server = ScriptedLLMServer()
    with pytest.raises(ValueError, match="at least one"):
        server.on("x")
    with pytest.raises(TypeError, match="None is not a reply"):
        server.reply(None)  # type: ignore[arg-type]


# Failures


async def test_failure_answers_exactly_one_request(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply(Failure(429, "slow down", "rate_limit_exceeded"), "fine")

    with pytest.raises(openai.RateLimitError, match="slow down") as raised:
        await ask(client)

    assert raised.value.code == "rate_limit_exceeded"
    assert server.requests[0].outcome == "failed"
    with pytest.raises(RuntimeError, match="ended before its reply started"):
        await server.requests[0].wait_started()
    assert await ask(client) == "fine"
    assert len(server.requests) == 2


async def test_unscripted_request_says_how_to_script_it(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        await ask(client, "where is my parcel?")

    for part in ('"where is my parcel?"', "server.reply(", "server.on(", "default="):
        assert part in raised.value.message
    assert len(server.requests) == 1


async def test_exception_in_a_rule_reaches_the_client(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    def broken(request: LLMRequest) -> str:
        raise KeyError("no such thing")

    server.on("hi", broken)

    with pytest.raises(openai.InternalServerError, match="no such thing"):
        await ask(client)
    assert server.requests[0].outcome == "failed"


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        '{"messages": [{"role": "user"}]}',
        '{"model": "m"}',
        '{"model": "m", "messages": []}',
        '{"model": "m", "messages": ["hi"]}',
    ],
)
async def test_malformed_request_gets_400(server: ScriptedLLMServer, body: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.base_url}/chat/completions", data=body) as response,
    ):
        assert response.status == 400
        error = (await response.json())["error"]

    assert error["message"].startswith("malformed request: ")
    assert error["type"] == "invalid_request_error"
    assert server.requests == []


# The choice of a reply


async def test_rules_come_first_in_order_then_the_queue_then_the_default() -> None:
    async with (
        ScriptedLLMServer(default=Text("default")) as server,
        AsyncOpenAI(api_key="test", base_url=server.base_url) as client,
    ):
        server.on("PARCEL", "parcel")
        server.on(lambda request: request.last_user_text == "my parcel", "never")
        server.on("router", lambda request: f"routed {request.last_user_text}")
        server.reply("queued")

        assert await ask(client, "my parcel") == "parcel"
        assert await ask(client, "hi", system="You are a Router.") == "routed hi"
        assert await ask(client, "hi") == "queued"
        assert await ask(client, "hi") == "default"


async def test_replies_of_a_rule_take_turns(server: ScriptedLLMServer, client: AsyncOpenAI) -> None:
    server.on("stay", "one", "two")
    server.on("once", "three", repeat=False)
    server.on("once", "four")

    assert [await ask(client, "stay") for _ in range(3)] == ["one", "two", "two"]
    assert [await ask(client, "once") for _ in range(3)] == ["three", "four", "four"]


async def test_simultaneous_requests_are_served_at_the_same_time(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.on("slow", Stall("wait"))
    server.on("fast", "done")

    async with await open_stream(client, "slow") as stream:
        await read_tokens(stream, 1)
        assert await ask(client, "fast") == "done"
        assert [request.outcome for request in server.requests] == ["streaming", "completed"]


async def test_a_request_is_recorded_with_its_content(
    server: ScriptedLLMServer, client: AsyncOpenAI
) -> None:
    server.reply("ok")
    await client.chat.completions.create(
        model="gpt-x",
        temperature=0.5,
        messages=[
            {"role": "system", "content": "One."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": None},
            {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "second"},
                    {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
                    {"type": "text", "text": "part"},
                ],
            },
        ],
        tools=[{"type": "function", "function": {"name": "look", "parameters": {}}}],
    )

    (request,) = server.requests
    assert request.model == "gpt-x"
    assert request.body["temperature"] == 0.5
    assert request.system == "One.\nTwo."
    assert request.last_user_text == "second\npart"
    assert request.tools == ["look"]
    assert len(request.messages) == 5
    assert not request.stream
    assert repr(request) == "<LLMRequest 'second\\npart' completed, 1 tokens sent>"


# The server itself


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["scripted"]


async def test_stop_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    server = ScriptedLLMServer()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.base_url
    await server.start()
    with pytest.raises(RuntimeError, match="running already"):
        await server.start()
    server.reply(Stall("never"), "idle connection", Text("slow pace", pace=3600))
    async with AsyncOpenAI(api_key="test", base_url=server.base_url) as client:
        stalled = await open_stream(client)
        assert await ask(client) == "idle connection"
        paced = await open_stream(client)
        await server.requests[2].wait_token(1)
        waiting = asyncio.create_task(server.wait_for_requests(4))
        await asyncio.sleep(0)

        await server.stop()

        assert asyncio.all_tasks() - before <= {waiting}
        with pytest.raises(RuntimeError, match="waited for 4 requests, 3 had arrived"):
            await waiting
        outcomes = [request.outcome for request in server.requests]
        assert outcomes == ["stopped", "completed", "stopped"]
        assert all(request.hung_up_at is None for request in server.requests)
        await stalled.close()
        await paced.close()
    await server.stop()
    assert asyncio.all_tasks() == before

    async with server, AsyncOpenAI(api_key="test", base_url=server.base_url) as client:
        server.reply("again")
        assert await ask(client) == "again"


async def test_starting_on_a_used_port_fails_cleanly(server: ScriptedLLMServer) -> None:
    port = int(server.base_url.removesuffix("/v1").rpartition(":")[2])
    second = ScriptedLLMServer(port=port)

    with pytest.raises(OSError, match="attempting to bind"):
        await second.start()
    await second.stop()
