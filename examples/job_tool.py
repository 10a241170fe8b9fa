"""Offer a job to an LLM as a tool, and interrupt it.

A travel desk's LLM has the tool ``find_hotels``, which requests a job from two agencies at once.
The second agency is slow. In the first call its response misses the deadline, and the LLM reads
which agency is missing. In the second call the user speaks while both agencies work, and both stop.

Run it, without an API key or a network; a scripted model plays the LLM::

    python examples/job_tool.py
"""

import asyncio
import json
import os

# Pipecat logs as it is imported, so the level is set before: only warnings and errors.
os.environ.setdefault("LOGURU_LEVEL", "WARNING")
# With a proxy in the environment, requests to this machine's own server would go to the proxy.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

from pipecat.frames.frames import InterruptionFrame
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, LLMContextWorker, LLMTurnInterruptedError, job, job_tool
from pipecat_jobs.testing import LLMRequest, ScriptedLLMServer, ToolCall


class Agency(BaseWorker):
    """Finds hotels, which takes time."""

    def __init__(self, name: str, *, takes: float):
        super().__init__(name)
        self.takes = takes
        self.searching = asyncio.Event()
        self.stopped = asyncio.Event()

    @job
    async def find_hotels(self, city: str) -> dict[str, str]:
        self.searching.set()
        try:
            await asyncio.sleep(self.takes)
        except asyncio.CancelledError:
            print(f"{self.name}: my search was stopped")
            self.stopped.set()
            raise
        return {"hotel": f"Hotel {city}"}


class TravelDesk(LLMContextWorker):
    """Talks with the user."""

    def __init__(self, llm: OpenAILLMService):
        # Bridged to no worker, because this example has no client that shows the conversation.
        super().__init__("desk", llm=llm, active=True, bridged=())

    @job_tool("north", "south", job="find_hotels", timeout=1)
    async def find_hotels(self, city: str) -> dict[str, str]:
        """Find hotels in a city.

        Args:
            city: The city's name.
        """
        print(f"desk: looking for hotels in {city}")
        return {"city": city}


def answer(request: LLMRequest) -> str | ToolCall:
    """Play the LLM: call the tool for every city, then say its result."""
    last = request.messages[-1]
    if last["role"] != "tool":
        return ToolCall("find_hotels", {"city": str(last["content"]).split()[-1]})
    result = json.loads(str(last["content"]))
    found = [answer["hotel"] for answer in result["answers"].values()]
    missing = [f"{agency} {why}" for agency, why in result["missing"].items()]
    return f"I found {' and '.join(found)} but {' and '.join(missing)}"


async def ask(desk: TravelDesk, text: str) -> None:
    """Play the user: print what the desk says to a text."""
    print(f"user: {text}")
    try:
        print(f"desk: {await desk.hear(text)}")
    except LLMTurnInterruptedError:
        print("desk: (interrupted)")


async def main() -> None:
    """Run the desk and its agencies for two questions."""
    async with ScriptedLLMServer() as server:
        server.on(lambda request: True, answer)
        llm = OpenAILLMService(api_key="none", base_url=server.base_url)
        desk = TravelDesk(llm)
        north, south = Agency("north", takes=0.2), Agency("south", takes=60)
        runner = WorkerRunner()

        @runner.event_handler("on_ready")
        async def on_ready(runner: WorkerRunner) -> None:
            try:
                await ask(desk, "a hotel in Oslo")
                north.takes = 60
                north.searching.clear()
                south.stopped.clear()
                asking = asyncio.create_task(ask(desk, "a hotel in Rome"))
                await north.searching.wait()
                print("user: no, wait!")
                await desk.queue_frame(InterruptionFrame())
                await north.stopped.wait()
                await south.stopped.wait()
                await asking
                print(f"requests to the LLM: {len(server.requests)}")
            finally:
                await runner.end()

        await runner.add_workers(desk, north, south)
        await runner.run()


if __name__ == "__main__":
    asyncio.run(main())
