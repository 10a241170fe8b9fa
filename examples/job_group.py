"""Request a job from several workers at once, and keep the responses when one of them is late.

A radio host prepares two shows with three reporters. All three work at once, and each reads
its own part of one payload. In the second show one reporter misses the deadline. The responses of
the others are not lost, because the error has the outcome of each worker.

Run it, without an API key or a network::

    python examples/job_group.py
"""

import asyncio
import os
import time

# Pipecat logs as it is imported, so the level is set before: only warnings and errors.
os.environ.setdefault("LOGURU_LEVEL", "WARNING")

from pipecat.bus.messages import BusJobRequestMessage
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, JobGroupError, job


class Reporter(BaseWorker):
    """Works on one topic, which takes time."""

    @job(name="report")
    async def report(self, message: BusJobRequestMessage) -> dict:
        # All workers get the same payload; each one reads the part under its own name.
        assignment = message.payload[self.name]
        await asyncio.sleep(assignment["takes"])
        return {"text": f"all about {assignment['about']}"}


class Host(BaseWorker):
    """Collects the reports."""

    async def prepare_show(self, *, traffic_takes: float, deadline: float) -> None:
        print(f"host: three reports, please, within {deadline:g} s")
        started = time.monotonic()
        try:
            async with self.job_group(
                "weather",
                "sports",
                "traffic",
                name="report",
                payload={
                    "weather": {"about": "the rain in Oslo", "takes": 0.2},
                    "sports": {"about": "last night's final", "takes": 0.2},
                    "traffic": {"about": "the ring road", "takes": traffic_takes},
                },
                timeout=deadline,
            ) as jg:
                pass  # Leaving the block waits for the responses.
        except JobGroupError as error:
            print(f"host: not everything. {error}")
            for name, outcome in error.outcomes.items():
                text = outcome.response["text"] if outcome.response else "nothing"
                print(f"  {name}: {outcome.status}, {text}")
        else:
            for name, response in jg.responses.items():
                print(f"  {name}: {response['text']}")
        print(f"host: that took {time.monotonic() - started:.1f} s")


async def main() -> None:
    """Run the host and the reporters for two shows."""
    runner = WorkerRunner()
    host = Host("host")

    @runner.event_handler("on_ready")
    async def on_ready(runner: WorkerRunner) -> None:
        try:
            await host.prepare_show(traffic_takes=0.2, deadline=5)
            await host.prepare_show(traffic_takes=60, deadline=0.8)
        finally:
            await runner.end()

    await runner.add_workers(host, Reporter("weather"), Reporter("sports"), Reporter("traffic"))
    await runner.run()


if __name__ == "__main__":
    asyncio.run(main())
