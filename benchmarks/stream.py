"""The memory that a stream takes whose reader is slower than its writer."""

import asyncio
from functools import partial

from pipecat.pipeline.job_context import JobParams

from benchmarks.benchmark import Benchmark, Figure
from benchmarks.child import Measured, measure_in_children, resident
from benchmarks.subjects import SUBJECTS, Subject, running

#: The number of chunks of the stream.
_CHUNKS = 100_000

#: Turns of the event loop that the reader takes for each chunk; the writer takes one.
_TURNS = 5

#: After how many chunks memory is measured.
_LOOK = 5_000


async def _peak(subject: Subject, chunks: int, look: int) -> Measured:
    async with running(subject, 1) as workers:
        before = most = resident()
        read = 0
        params = JobParams(name="stream", payload={"chunks": chunks})
        async with workers.requester.job(workers.names[0], params=params) as stream:
            async for _ in stream:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                read += 1
                if read % look == 0:
                    most = max(most, resident())
    return {(f"{chunks:,} chunks, peak above the start", "MB"): most - before}


async def _run(rounds: int) -> list[Figure]:
    measures = [(subject, partial(_peak, subject, _CHUNKS, _LOOK)) for subject in SUBJECTS]
    return await measure_in_children(measures, rounds)


STREAM = Benchmark(
    name="stream",
    title="a stream whose reader is slower than its writer",
    method=(
        f"The writer sends a chunk in each turn of the event loop, the reader takes {_TURNS} turns "
        "for each. Resident memory is measured after a garbage collection, whenever the reader has "
        f"read {_LOOK:,} chunks; the figure is the peak above the memory at the start. Every "
        "measurement has a process of its own."
    ),
    rounds=1,
    run=_run,
)
