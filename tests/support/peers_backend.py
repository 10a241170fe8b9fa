"""Pipecat's ``BackendLLMWorker`` with jobs, and a frontend that attaches to it."""

import asyncio

import pytest

from pipecat_jobs import JobsMixin
from support.peers import PlainPeer, cancel

try:
    from pipecat.workers.llm import BackendLLMWorker
except ImportError:
    pytest.skip("this Pipecat has no BackendLLMWorker", allow_module_level=True)


class Mine(BackendLLMWorker, JobsMixin):
    pass


class Frontend:
    """Does the same as a frontend session, through public names only."""

    def __init__(self, worker: PlainPeer):
        self.worker = worker
        self.updates: asyncio.Queue[dict] = asyncio.Queue()
        self.ended: asyncio.Task[None] | None = None
        self.job_id: asyncio.Future[str] = asyncio.Future()

    async def _attach(self) -> None:
        async with self.worker.job("backend", name="attach") as attached:
            self.job_id.set_result(attached.job_id)
            async for event in attached:
                assert event.type == "update"
                self.updates.put_nowait(event.data)

    async def attach(self) -> dict:
        """Attach, and return the first message of the backend."""
        self.ended = asyncio.create_task(self._attach())
        return await self.updates.get()

    async def send(self, request: str) -> str:
        return (await self.worker.ask("backend", "message", payload={"request": request}))[
            "backend"
        ]

    async def until_idle(self) -> list[dict]:
        updates = [await self.updates.get()]
        while updates[-1]["type"] != "idle":
            updates.append(await self.updates.get())
        return updates[:-1]

    async def detach(self) -> None:
        await cancel(self.ended)
