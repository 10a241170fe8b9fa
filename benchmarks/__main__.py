"""``python -m benchmarks`` runs all benchmarks, ``python -m benchmarks NAME`` one of them."""

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.benchmark import Benchmark, Figure
from benchmarks.child import log_errors_only
from benchmarks.conversation import CONVERSATION
from benchmarks.distributed import DISTRIBUTED
from benchmarks.group import GROUP
from benchmarks.imports import IMPORT
from benchmarks.interruption import INTERRUPTION
from benchmarks.memory import MEMORY
from benchmarks.options import OPTIONS
from benchmarks.profiling import profile
from benchmarks.report import describe_machine, to_json, to_text
from benchmarks.round_trip import ROUND_TRIP
from benchmarks.sessions import SESSIONS
from benchmarks.stream import STREAM
from benchmarks.throughput import THROUGHPUT
from benchmarks.typed import TYPED

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        INTERRUPTION,
        CONVERSATION,
        ROUND_TRIP,
        GROUP,
        THROUGHPUT,
        TYPED,
        OPTIONS,
        MEMORY,
        STREAM,
        IMPORT,
        SESSIONS,
        DISTRIBUTED,
    )
}

#: The benchmarks that the plot shows, and their titles in it.
PLOTTED = {ROUND_TRIP: "one job", GROUP: "a group of all workers on the bus"}


def _check_rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError(f"{rounds} is not a number of rounds; give 1 or more")
    return rounds


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line names, and print their figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"the benchmarks to run: {', '.join(BENCHMARKS)}; all by default",
    )
    parser.add_argument("--rounds", type=_check_rounds, help="how many rounds each benchmark takes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="a file for the figures, as JSON")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="a file for a plot, as SVG")
    parser.add_argument(
        "--profile", action="store_true", help="profile pipecat-jobs instead of measuring it"
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(
            f"benchmark {unknown[0]!r} does not exist; give some of: {', '.join(BENCHMARKS)}"
        )
    chosen = [BENCHMARKS[name] for name in options.names or BENCHMARKS]
    if options.plot and not all(benchmark in chosen for benchmark in PLOTTED):
        parser.error(f"--plot needs {' and '.join(benchmark.name for benchmark in PLOTTED)}")

    if options.profile and any(benchmark.ours is None for benchmark in chosen):
        known = [benchmark.name for benchmark in BENCHMARKS.values() if benchmark.ours is not None]
        parser.error(f"--profile needs the name of a benchmark of time: {', '.join(known)}")

    print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    if options.profile:
        for benchmark in chosen:
            assert benchmark.ours is not None
            print("", benchmark.name, asyncio.run(profile(benchmark.ours)), sep="\n")
        return
    results: dict[Benchmark, list[Figure]] = {}
    for benchmark in chosen:
        results[benchmark] = asyncio.run(benchmark.run(options.rounds or benchmark.rounds))
        print("", to_text(benchmark, results[benchmark]), sep="\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(to_json(results), indent=2) + "\n")
    if options.plot:
        # Imported late, because it would cost the processes that measure memory half a second each.
        from benchmarks.plot import draw

        draw([(title, results[benchmark]) for benchmark, title in PLOTTED.items()], options.plot)


if __name__ == "__main__":
    log_errors_only()
    # Otherwise Pipecat prints a greeting in every process that measures memory.
    os.environ["LOGURU_AUTOINIT"] = "False"
    # Otherwise a configured proxy would get the requests to the server on this machine.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    main()
