"""What a stream holds in memory that comes faster than it is read."""

import asyncio
from functools import partial

from pipecat.pipeline.job_context import JobParams

from benchmarks.benchmark import Benchmark, Figure
from benchmarks.child import Measured, measure_in_children, resident
from benchmarks.subjects import SUBJECTS, Subject, running

#: How long the stream is.
_CHUNKS = 100_000

#: Turns of the loop that the reader takes for each chunk; the writer takes one.
_TURNS = 5

#: After how many chunks memory is looked at.
_LOOK = 5_000


async def _peak(subject: Subject, chunks: int, look: int) -> Measured:
    async with running(subject, 1) as workers:
        before = most = resident()
        read = 0
        asked = JobParams(name="stream", payload={"chunks": chunks})
        async with workers.asker.job(workers.names[0], params=asked) as stream:
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
        "The writer sends a chunk in each turn of the loop, the reader spends "
        f"{_TURNS} turns on each. Resident memory, after a garbage collection, every {_LOOK:,} "
        "chunks that were read; the peak less what it was before. Every measurement has a process "
        "of its own."
    ),
    rounds=1,
    run=_run,
)
