"""A process with the three debaters: ``python -m examples.distributed.debaters URL LEASE``.

Several of these processes run at once, and each job goes to one of them. When a process is killed,
its jobs are reassigned to another one.
"""

import asyncio
import os
import sys
from typing import Any

from loguru import logger


async def run(url: str, lease: float) -> None:
    """Run the debaters until the process is ended.

    Args:
        url: The URL of the Redis server.
        lease: Seconds without a renewal after which this process counts as dead.
    """
    # Pipecat logs as it is imported, so it is imported once logging is off.
    from pipecat.workers.runner import WorkerRunner

    from examples.debate.stage import find_running
    from examples.debate.workers import DEBATERS, Debater
    from examples.distributed.loading import load_ahead
    from pipecat_jobs import JobInterceptor, job_attempt
    from pipecat_jobs.bus.redis import RedisStreamsBus, drain_on_sigterm

    class ReportProcess(JobInterceptor):
        """Reports the process of a debater before it argues."""

        def __init__(self, debater: Debater):
            self._debater = debater

        async def handle(self, request: Any, proceed: Any) -> Any:
            here = {"pid": os.getpid(), "attempt": job_attempt(request)}
            await self._debater.send_job_update(request.job_id, here)
            return await proceed(request)

    load_ahead()
    provider = find_running()
    assert provider is not None
    bus = RedisStreamsBus(url, lease=lease)
    runner = WorkerRunner(bus=bus, handle_sigint=False)
    drain_on_sigterm(runner, timeout=1.0)
    for name, role in DEBATERS.items():
        debater = Debater(name, llm=provider.llm(role))
        debater.add_job_interceptor(ReportProcess(debater))
        await runner.add_workers(debater)
    runner.add_event_handler("on_ready", lambda _: print("ready", flush=True))
    await runner.run(auto_end=False)


if __name__ == "__main__":
    logger.remove()
    asyncio.run(run(sys.argv[1], float(sys.argv[2])))
