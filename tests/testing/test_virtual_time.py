import asyncio
import socket
import threading
import time

import pytest

from pipecat_jobs.testing.virtual_time import VirtualDeadlockError, VirtualTimeLoop, run_virtual


def test_a_long_timeout_expires_exactly_and_at_once():
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert run_virtual(main()) == 30.0
    assert time.monotonic() - began < 10


def test_timers_run_in_the_order_of_their_deadlines():
    async def main() -> list[tuple[str, float]]:
        loop, fired = asyncio.get_running_loop(), []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            fired.append((name, loop.time()))

        await asyncio.gather(sleeper("late", 3600), sleeper("early", 0.5), sleeper("mid", 60))
        return fired

    assert run_virtual(main()) == [("early", 0.5), ("mid", 60.0), ("late", 3600.0)]


def test_a_sleep_of_many_days_ends():
    async def main() -> float:
        await asyncio.sleep(30 * 24 * 3600)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 30 * 24 * 3600


def test_the_clock_does_not_advance_while_a_callback_is_ready():
    async def main() -> float:
        timer = asyncio.create_task(asyncio.sleep(1))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not timer.done()
        now = asyncio.get_running_loop().time()
        await timer
        return now

    assert run_virtual(main()) == 0.0


def test_the_clock_does_not_advance_while_an_executor_works():
    async def main() -> float:
        gate = threading.Event()
        threading.Timer(0.05, gate.set).start()
        async with asyncio.timeout(1):
            await asyncio.to_thread(gate.wait)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 0.0


def test_the_clock_runs_again_after_an_executor_failed():
    async def main() -> float:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        await asyncio.sleep(5)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 5.0


def test_another_thread_can_wake_an_idle_loop():
    async def main() -> str:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(woken.set,))
        loop.call_soon(thread.start)
        await woken.wait()
        thread.join()
        return "woken"

    assert run_virtual(main()) == "woken"


def test_sockets_of_the_same_process_are_served_before_the_clock_jumps():
    async def main() -> tuple[bytes, float]:
        loop = asyncio.get_running_loop()

        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(respond, "127.0.0.1", 0)
        async with server, asyncio.timeout(1):
            host, port = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"hello\n")
            line = await reader.readline()
            writer.close()
            await writer.wait_closed()
        return line, loop.time()

    line, now = run_virtual(main())
    assert line == b"HELLO\n"
    assert now < 1


def test_an_idle_loop_with_an_open_socket_waits_for_its_data():
    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            threading.Timer(0.05, theirs.sendall, (b"x",)).start()
            return await loop.sock_recv(ours, 1)

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(deadlock_after=0.001)) as runner:
        assert runner.run(main()) == b"x"


def test_a_deadlock_is_an_error_and_tasks_are_cleaned_up():
    ended: list[str] = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("main")

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(deadlock_after=0.01)) as runner:
            runner.run(main())

    with pytest.raises(VirtualDeadlockError, match="no timer"):
        run()
    assert ended == ["main"]


def test_an_error_of_the_coroutine_reaches_the_caller():
    async def main() -> None:
        await asyncio.sleep(1)
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        run_virtual(main())


def test_shutting_down_a_slow_executor_waits_for_its_thread():
    gate, done = threading.Event(), threading.Event()

    def work() -> None:
        gate.wait()
        done.set()

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, work)
        threading.Timer(0.05, gate.set).start()

    run_virtual(main())
    assert done.is_set()
