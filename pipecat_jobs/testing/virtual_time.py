"""An asyncio event loop whose clock jumps, so that tests of long timeouts take no time."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

from pipecat_jobs._protocol.checks import check_delay

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualDeadlockError(RuntimeError):
    """Raised when nothing on a `VirtualTimeLoop` can ever run again.

    Example::

        def new_loop():
            return VirtualTimeLoop(deadlock_after=0.01)

        with (
            pytest.raises(VirtualDeadlockError),
            asyncio.Runner(loop_factory=new_loop) as runner,
        ):
            runner.run(asyncio.Event().wait())
    """


class _VirtualSelector(selectors.DefaultSelector):
    """Moves a virtual clock forward instead of waiting."""

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
            # A thread takes real time; its result wakes the loop through the files of the loop.
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
                "every task waits, and nothing can wake one: there is no timer, no I/O and no "
                f"executor, and no other thread woke the loop for {self._deadlock_after:g} s"
            )
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time: when nothing is ready, its clock jumps to the next timer.

    ``loop.time()`` starts at 0 and changes only by such jumps, so a timeout of 30 s expires at
    exactly 30.0 and takes no real time. ``time.time()`` and ``time.monotonic()`` are not changed.

    - While a function runs in an executor (``asyncio.to_thread()``, name resolution), the clock
      does not jump. It does jump while other threads run, because the loop does not know them.
    - While sockets are open, the loop waits ``io_grace`` real seconds for them before each
      jump. That is enough for peers in the same process, but not for a real network: test its
      timeouts on a real loop.
    - If no timer is scheduled and no I/O is possible, ``run_until_complete()`` raises
      `VirtualDeadlockError` after ``deadlock_after`` real seconds. Until then, other threads can
      wake the loop with ``call_soon_threadsafe()``.

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
            deadlock_after: Real seconds without anything to run until the loop raises
                `VirtualDeadlockError`.

        Raises:
            InvalidJobTypeError: If an argument is not a number.
            InvalidJobError: If an argument is negative.
        """
        self._virtual = _VirtualSelector(
            io_grace=check_delay("io_grace", io_grace),
            deadlock_after=check_delay("deadlock_after", deadlock_after),
        )
        super().__init__(self._virtual)
        # The loop has just registered the files through which other threads and signals wake it.
        self._virtual.own_files = len(self._virtual.get_map())

    def time(self) -> float:
        """Return the virtual time.

        Returns:
            The sum of all jumps of the clock, in seconds, from 0.0.
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
            timeout: Seconds; it never expires, because the clock does not jump meanwhile.
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
