"""``python -m benchmarks`` runs all benchmarks, ``python -m benchmarks NAME`` one of them."""

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.benchmark import Benchmark, Figure
from benchmarks.child import log_errors_only
from benchmarks.distributed import DISTRIBUTED
from benchmarks.group import GROUP
from benchmarks.imports import IMPORT
from benchmarks.interruption import INTERRUPTION
from benchmarks.memory import MEMORY
from benchmarks.profiling import profile
from benchmarks.report import as_json, as_text, machine
from benchmarks.round_trip import ROUND_TRIP
from benchmarks.sessions import SESSIONS
from benchmarks.stream import STREAM
from benchmarks.throughput import THROUGHPUT

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        INTERRUPTION,
        ROUND_TRIP,
        GROUP,
        THROUGHPUT,
        MEMORY,
        STREAM,
        IMPORT,
        SESSIONS,
        DISTRIBUTED,
    )
}

#: What the plot shows, and under which titles.
PLOTTED = {ROUND_TRIP: "one job", GROUP: "a group of all workers on the bus"}


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError(f"{rounds} is no number of rounds; give 1 or more")
    return rounds


def main(arguments: Sequence[str] | None = None) -> None:
    """Run benchmarks and print what they find.

    Args:
        arguments: The command line, without the program; the process's own by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; all by default"
    )
    parser.add_argument("--rounds", type=_rounds, help="how many rounds each takes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the figures too")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="where to draw them, as SVG")
    parser.add_argument(
        "--profile", action="store_true", help="show where our time goes instead of measuring it"
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    chosen = [BENCHMARKS[name] for name in options.names or BENCHMARKS]
    if options.plot and not all(benchmark in chosen for benchmark in PLOTTED):
        parser.error(f"--plot needs {' and '.join(benchmark.name for benchmark in PLOTTED)}")

    if options.profile and any(benchmark.ours is None for benchmark in chosen):
        known = [benchmark.name for benchmark in BENCHMARKS.values() if benchmark.ours is not None]
        parser.error(f"--profile needs the names of some of: {', '.join(known)}")

    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if options.profile:
        for benchmark in chosen:
            assert benchmark.ours is not None
            print("", benchmark.name, asyncio.run(profile(benchmark.ours)), sep="\n")
        return
    results: dict[Benchmark, list[Figure]] = {}
    for benchmark in chosen:
        results[benchmark] = asyncio.run(benchmark.run(options.rounds or benchmark.rounds))
        print("", as_text(benchmark, results[benchmark]), sep="\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(as_json(results), indent=2) + "\n")
    if options.plot:
        # Takes half a second to import, which the processes that measure memory would pay too.
        from benchmarks.plot import draw

        draw([(title, results[benchmark]) for benchmark, title in PLOTTED.items()], options.plot)


if __name__ == "__main__":
    log_errors_only()
    # Otherwise Pipecat greets from every process that measures memory.
    os.environ["LOGURU_AUTOINIT"] = "False"
    # Where a proxy is configured, it would be asked for this machine's own server.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    main()
