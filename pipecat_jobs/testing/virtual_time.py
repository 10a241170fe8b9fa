"""An asyncio event loop whose clock jumps, so that long timeouts are tested at once."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

from pipecat_jobs._protocol.checks import check_delay

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualDeadlockError(RuntimeError):
    """Nothing on a `VirtualTimeLoop` can ever run again."""


class _VirtualSelector(selectors.DefaultSelector):
    """Lets a virtual clock pass instead of waiting for it."""

    def __init__(self, *, io_grace: float, deadlock_after: float):
        super().__init__()
        self._io_grace = io_grace
        self._deadlock_after = deadlock_after
        self.now = 0.0
        self.in_executor = 0
        self.own_files = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.in_executor:
            # A thread takes real time; its result arrives through the loop's own files.
            return super().select(None)
        has_io = len(self.get_map()) > self.own_files
        if timeout is None:
            return self._wait_for_outside(has_io)
        if has_io:
            ready = super().select(self._io_grace)
        if not ready:
            self.now += timeout
        return ready

    def _wait_for_outside(self, has_io: bool) -> list[tuple[selectors.SelectorKey, int]]:
        if has_io:
            return super().select(None)
        ready = super().select(self._deadlock_after)
        if not ready:
            raise VirtualDeadlockError(
                "every task waits for something that nothing will bring: no timer, no I/O, no "
                f"executor, and no other thread woke the loop for {self._deadlock_after:g} s"
            )
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time: when nothing is ready, its clock jumps to the next timer.

    ``loop.time()`` starts at 0 and moves only by such jumps, so a 30 s timeout expires at
    exactly 30.0 and takes no time. ``time.time()`` and ``time.monotonic()`` stay real.

    - While a function runs in an executor (``asyncio.to_thread()``, name resolution) the clock
      stands still. It does not stand still for threads the loop knows nothing about.
    - While sockets are open, the loop waits ``io_grace`` real seconds for them before each
      jump. That is enough for peers in the same process and not for a real network, whose
      timeouts belong on a real loop.
    - When nothing is scheduled and nothing can arrive, it raises `VirtualDeadlockError` out of
      ``run_until_complete()`` after ``deadlock_after`` real seconds, in which other threads
      may still wake it by ``call_soon_threadsafe()``.

    Example::

        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(30):
                    await asyncio.Event().wait()
            assert asyncio.get_running_loop().time() == 30


        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(main())
    """

    def __init__(self, *, io_grace: float = 0.001, deadlock_after: float = 5.0):
        """Initialize the loop.

        Args:
            io_grace: Real seconds to wait for open sockets before the clock jumps.
            deadlock_after: Real seconds without anything to do until it is a deadlock.

        Raises:
            InvalidJobTypeError: If one is not a number.
            InvalidJobError: If one is negative.
        """
        self._virtual = _VirtualSelector(
            io_grace=check_delay("io_grace", io_grace),
            deadlock_after=check_delay("deadlock_after", deadlock_after),
        )
        super().__init__(self._virtual)
        # The loop has just registered what other threads and signals wake it by.
        self._virtual.own_files = len(self._virtual.get_map())

    def time(self) -> float:
        """Return the virtual time.

        Returns:
            Seconds since the loop was made, as far as the clock has jumped.
        """
        return self._virtual.now

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*Ts], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        """Run a function in an executor, with the virtual clock stopped until it is done.

        Args:
            executor: The executor; None for the loop's default one.
            func: The function to run.
            *args: Its arguments.

        Returns:
            A future for its result.
        """
        future = super().run_in_executor(executor, func, *args)
        self._virtual.in_executor += 1
        future.add_done_callback(self._executor_done)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the default executor's threads, with the virtual clock stopped meanwhile.

        Args:
            timeout: Accepted as by any loop; it never expires, since the clock stands still.
        """
        self._virtual.in_executor += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._virtual.in_executor -= 1

    def _executor_done(self, _: asyncio.Future[T]) -> None:
        self._virtual.in_executor -= 1


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new `VirtualTimeLoop`, as ``asyncio.run()`` does on a real one.

    Args:
        main: The coroutine to run.

    Returns:
        Its result.

    Raises:
        VirtualDeadlockError: If nothing can ever run again before the coroutine is done.

    Example::

        async def main() -> float:
            await asyncio.sleep(3600)
            return asyncio.get_running_loop().time()


        assert run_virtual(main()) == 3600
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
