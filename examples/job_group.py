"""Request a job from several workers at once, and keep the responses when one of them is late.

A radio host prepares three shows with three reporters. All three work at once, and each gets a
payload of its own. In the second show one reporter misses the deadline. The responses of the others
are not lost, because the error has the outcome of each worker. In the third show two reports are
enough, and the late reporter is stopped.

Run it, without an API key or a network::

    python examples/job_group.py
"""

import asyncio
import os
import time
from typing import Literal

# Pipecat logs as it is imported, so the level is set before: only warnings and errors.
os.environ.setdefault("LOGURU_LEVEL", "WARNING")

from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, JobGroupError, job


class Reporter(BaseWorker):
    """Works on one topic, which takes time."""

    @job
    async def report(self, about: str, takes: float) -> dict[str, str]:
        await asyncio.sleep(takes)
        return {"text": f"all about {about}"}


class Host(BaseWorker):
    """Collects the reports."""

    async def prepare_show(
        self, *, traffic_takes: float, deadline: float, need: Literal["all"] | int = "all"
    ) -> None:
        print(f"host: {need} of three reports, please, within {deadline:g} s")
        started = time.monotonic()
        try:
            responses = await self.job_group(
                "weather",
                "sports",
                "traffic",
                name="report",
                payloads={
                    "weather": {"about": "the rain in Oslo", "takes": 0.2},
                    "sports": {"about": "last night's final", "takes": 0.2},
                    "traffic": {"about": "the ring road", "takes": traffic_takes},
                },
                need=need,
                timeout=deadline,
            )
        except JobGroupError as error:
            print(f"host: not everything. {error}")
            for name, outcome in error.outcomes.items():
                text = outcome.response["text"] if outcome.response else "nothing"
                print(f"  {name}: {outcome.status}, {text}")
        else:
            for name, response in responses.items():
                print(f"  {name}: {response['text']}")
        print(f"host: that took {time.monotonic() - started:.1f} s")


async def main() -> None:
    """Run the host and the reporters for three shows."""
    runner = WorkerRunner()
    host = Host("host")

    @runner.event_handler("on_ready")
    async def on_ready(runner: WorkerRunner) -> None:
        try:
            await host.prepare_show(traffic_takes=0.2, deadline=5)
            await host.prepare_show(traffic_takes=60, deadline=0.8)
            await host.prepare_show(traffic_takes=60, deadline=5, need=2)
        finally:
            await runner.end()

    await runner.add_workers(host, Reporter("weather"), Reporter("sports"), Reporter("traffic"))
    await runner.run()


if __name__ == "__main__":
    asyncio.run(main())
