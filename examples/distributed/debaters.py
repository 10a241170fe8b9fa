"""A process with the three debaters: ``python -m examples.distributed.debaters URL LEASE``.

Several run at once, and each job goes to one of them. When its process is killed, another takes
the job up.
"""

import asyncio
import os
import sys
from typing import Any

from loguru import logger


async def run(url: str, lease: float) -> None:
    """Debate until there is nobody left to debate for.

    Args:
        url: The Redis server.
        lease: Seconds after which this process counts as dead, once it is silent.
    """
    # Pipecat logs as it is imported.
    from pipecat.bus.messages import BusJobRequestMessage
    from pipecat.workers.runner import WorkerRunner

    from examples.debate.stage import find_key
    from examples.debate.workers import DEBATERS, Debater
    from examples.distributed.loading import load_ahead
    from pipecat_jobs import job, job_attempt
    from pipecat_jobs.bus.redis import RedisStreamsBus, drain_on_sigterm

    class Witness(Debater):
        """A debater that says which process it is in."""

        @job(name="argue")
        async def argue(self, message: BusJobRequestMessage) -> dict[str, Any]:
            here = {"pid": os.getpid(), "attempt": job_attempt(message)}
            await self.send_job_update(message.job_id, here)
            return await super().argue(message)

    load_ahead()
    provider = find_key()
    assert provider is not None
    bus = RedisStreamsBus(url, lease=lease)
    runner = WorkerRunner(bus=bus, handle_sigint=False)
    drain_on_sigterm(runner, timeout=1.0)
    await runner.add_workers(
        *(Witness(name, llm=provider.llm(role)) for name, role in DEBATERS.items())
    )
    runner.add_event_handler("on_ready", lambda _: print("ready", flush=True))
    await runner.run(auto_end=False)


if __name__ == "__main__":
    logger.remove()
    asyncio.run(run(sys.argv[1], float(sys.argv[2])))
