"""Talking to the scripted server with OpenAI's own client."""

from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk

from pipecat_jobs.testing import ScriptedLLMServer


async def open_stream(
    client: AsyncOpenAI, user: str = "hi", *, system: str = "Be brief."
) -> AsyncStream[ChatCompletionChunk]:
    return await client.chat.completions.create(
        model="scripted",
        messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
        stream=True,
        stream_options={"include_usage": True},
    )


async def ask(client: AsyncOpenAI, user: str = "hi", *, system: str = "Be brief.") -> str:
    async with await open_stream(client, user, system=system) as stream:
        return "".join(
            [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        )


async def read_tokens(stream: AsyncStream[ChatCompletionChunk], count: int) -> list[str]:
    tokens: list[str] = []
    while len(tokens) < count:
        chunk = await anext(stream)
        if chunk.choices[0].delta.content:
            tokens.append(chunk.choices[0].delta.content)
    return tokens


async def ask_default(server: ScriptedLLMServer, client: AsyncOpenAI) -> None:
    server.reply("still here")
    assert await ask(client) == "still here"
