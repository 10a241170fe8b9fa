"""The debate in four processes, some of which are killed."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path

import pytest
from redis.asyncio import Redis
from support.bot_process import bot_environment
from support.terminal import Terminal

from examples.debate.board import State
from examples.debate.stage import find_provider
from examples.distributed import debaters, loading, stage
from pipecat_jobs.bus import redis as bus_module

# Each starts four processes; `make test` plays the example itself.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

A_DEBATE = """
import asyncio, contextlib, sys
from examples.debate.stage import debate, find_provider
from examples.distributed.loading import load_ahead
from pipecat.utils.string import match_endofsentence

async def play():
    load_ahead()
    before = set(sys.modules)
    async with find_provider(tempo=0.1) as provider, debate(provider) as (moderator, board):
        await moderator.interrupt_with("Should AI be regulated?")
        await board.until(lambda: board.moderator.ended)
        with contextlib.suppress(LookupError):
            match_endofsentence("One. Two.")
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})

asyncio.run(play())
"""


async def play(*arguments: str) -> str:
    """Run the example with a lease that holds even on a busy machine."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.distributed", "--plain", "--lease", "5", *arguments),
        cwd=ROOT,
        env=bot_environment(),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return " ".join(out.decode().split())


async def test_a_debate_goes_on_when_the_process_of_a_debater_is_killed():
    output = await play()
    [killed] = re.findall(r"SIGKILL to process (\d+), in the middle of the (\w+)'s", output)
    assert "3 processes live, 1 restarting" in output
    assert re.search(r"\(Process \d+ takes over\.\)", output)
    for name in ("ADVOCATE", "CRITIC", "ANALYST", "MODERATOR"):
        assert f"{name} (done" in output, killed
    assert "had no answer" not in output


async def kill_one(shown: stage.Stage) -> int:
    """Kill the process of a debater that speaks, and return its id."""
    await shown.board.until(lambda: shown.victim() is not None)
    [killed] = re.findall(r"process (\d+)", shown.kill())
    return int(killed)


async def test_the_moderator_names_a_missing_debater_when_no_process_is_left_to_take_over(
    monkeypatch: pytest.MonkeyPatch,
):
    async def leave_dead(_: stage.Stage) -> None:
        pass

    monkeypatch.setattr(stage.Stage, "restart", leave_dead)
    async with find_provider(tempo=0.5) as provider, stage.distributed(provider, 5.0) as shown:
        await shown.moderator.interrupt_with("Should AI be regulated?")
        for _ in range(3):
            await kill_one(shown)
        await shown.board.until(lambda: shown.board.moderator.ended)

        assert shown.describe() == "1 process live, 3 restarting"
        assert shown.board.moderator.state is State.DONE
        assert "had no answer" in shown.board.moderator.text


async def test_a_process_that_is_killed_is_replaced_again_and_again():
    async with find_provider(tempo=0.5) as provider, stage.distributed(provider, 5.0) as shown:
        assert shown.describe() == "4 processes live"
        for topic in ("May cats vote?", "May dogs vote?"):
            await shown.moderator.interrupt_with(topic)
            killed = await kill_one(shown)
            assert shown.describe() == "3 processes live, 1 restarting"
            await shown.until_whole()
            assert shown.describe() == "4 processes live"
            assert killed not in {process.pid for process in shown.processes}
        running = [process.pid for process in shown.processes]

    for pid in running:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_no_slow_module_is_imported_once_jobs_can_arrive():
    """An import may take longer than a lease, and the process would be declared dead."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", A_DEBATE),
        cwd=ROOT,
        env=bot_environment(),
        stdout=PIPE,
        stderr=DEVNULL,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    loaded = set(out.decode().split())
    assert not loaded & {"nltk", "sklearn", "openai"}


class _NoBus(Exception):
    """Raised instead of making a bus."""


@pytest.mark.parametrize("process", ["moderator", "debaters"])
async def test_a_process_imports_slow_modules_before_it_can_get_jobs(
    monkeypatch: pytest.MonkeyPatch, process: str
):
    steps: list[str] = []

    def no_bus(*_: object, **__: object) -> None:
        steps.append("bus")
        raise _NoBus

    for module in (stage, loading):
        monkeypatch.setattr(module, "load_ahead", lambda: steps.append("load ahead"))
    for module in (stage, bus_module):
        monkeypatch.setattr(module, "RedisStreamsBus", no_bus)
    async with find_provider() as provider:
        monkeypatch.setenv("OPENAI_API_KEY", provider.api_key)
        with pytest.raises(_NoBus):
            if process == "moderator":
                await stage.distributed(provider, 1.5).__aenter__()
            else:
                await debaters.run("redis://nowhere", 1.5)
    assert steps == ["load ahead", "bus"]


async def test_every_process_uses_the_lease_of_the_command():
    async with (
        find_provider() as provider,
        stage.distributed(provider, 60.0) as shown,
        Redis.from_url(shown.moderator.bus.url) as redis,
    ):
        [members] = [key async for key in redis.scan_iter("*:members")]
        ends = [end for _, end in await redis.zrange(members, 0, -1, withscores=True)]
        seconds, _ = await redis.time()
    assert len(ends) == 4
    assert min(ends) / 1000 - seconds > 30


def test_a_key_press_kills_a_process_in_mid_sentence_and_another_takes_over():
    pytest.importorskip("termios", reason="there are no such terminals on Windows")
    terminal = Terminal(sys.executable, "-m", "examples.distributed", "--lease", "3")
    try:
        terminal.wait_for("starting…", "4 processes live")
        # This is the ninth word of the critic, whose process is killed.
        terminal.wait_for("giant")
        terminal.type("\x0b")
        terminal.wait_for("SIGKILL to process", "(Process", "✓ done", "✓ done", "✓ done")
        terminal.wait_for("4 processes live")
        terminal.type("\x03")
        assert terminal.wait_exit() == 0
        assert terminal.is_as_before
    finally:
        terminal.close()
