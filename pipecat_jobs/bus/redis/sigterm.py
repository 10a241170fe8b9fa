"""Ends a process without losing a job."""

import asyncio
import signal

from pipecat.workers.runner import WorkerRunner

from pipecat_jobs._protocol.checks import check_instance
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs.bus.redis.streams import RedisStreamsBus
from pipecat_jobs.errors import InvalidJobTypeError


def drain_on_sigterm(runner: WorkerRunner, *, timeout: float | None = 30.0) -> None:
    """End this process at SIGTERM without losing a job.

    The first SIGTERM drains the bus and then ends the runner: see :meth:`RedisStreamsBus.drain`. A
    second SIGTERM ends the process at once; its jobs are then reassigned, as when it dies.

    Call this in the event loop that the runner runs in. Do not set ``handle_sigterm`` of the
    runner, which would cancel the jobs.

    Args:
        runner: A runner on a :class:`RedisStreamsBus`.
        timeout: Seconds to wait until the jobs of this process have ended. Jobs that are still open
            then are reassigned to another process. None waits until all have ended.

    Raises:
        InvalidJobTypeError: If the runner is on another bus, or the timeout is not a number.
        InvalidJobError: If the timeout is negative, NaN or too large.

    Example::

        import signal

        from pipecat_jobs.bus.redis import RedisStreamsBus, drain_on_sigterm

        runner = WorkerRunner(bus=RedisStreamsBus(), handle_sigint=False)
        drain_on_sigterm(runner)
        await runner.add_workers(BaseWorker("researcher"))
        runner.add_event_handler("on_ready", lambda _: signal.raise_signal(signal.SIGTERM))
        await runner.run(auto_end=False)
    """
    check_instance("runner", runner, WorkerRunner, "the WorkerRunner to end")
    seconds, bus = check_timeout("timeout", timeout), runner.bus
    if not isinstance(bus, RedisStreamsBus):
        raise InvalidJobTypeError(
            f"runner '{runner.name}' is on a {type(bus).__name__}; it has nothing to drain: "
            "give one on a RedisStreamsBus"
        )
    loop = asyncio.get_running_loop()

    async def leave() -> None:
        await bus.drain(seconds)
        await runner.end(reason="SIGTERM")

    def on_sigterm() -> None:
        loop.remove_signal_handler(signal.SIGTERM)
        runner.create_task(leave(), "drain")

    loop.add_signal_handler(signal.SIGTERM, on_sigterm)
