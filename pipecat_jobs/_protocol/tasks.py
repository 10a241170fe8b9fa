"""The tasks that serve jobs, and what to do with an exception that is raised in one."""

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from loguru import logger

Result = TypeVar("Result")


def deferred(coroutine: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
    """Make a coroutine begin only after the task for it has been created.

    With ``asyncio.eager_task_factory`` a task runs within ``create_task()``, before its creator
    knows it and, here, in the middle of handling a message.
    """
    if asyncio.get_running_loop().get_task_factory() is None:
        return coroutine
    return _begin_later(coroutine)


async def _begin_later(coroutine: Coroutine[Any, Any, Result]) -> Result:
    try:
        await asyncio.sleep(0)
    except BaseException:
        coroutine.close()
        raise
    return await coroutine


class RunningTask:
    """The running task, which tells its own cancellation from an exception of the code it calls."""

    __slots__ = ("_cancels", "_interrupted", "_task")

    def __init__(self, task: asyncio.Task[Any] | None = None):
        self._task = asyncio.current_task() if task is None else task
        self._cancels = self._task.cancelling() if self._task is not None else 0
        self._interrupted = False

    def survive(self, error: BaseException) -> None:
        """Go on after an exception that the task's code raised.

        It is raised again when the task was cancelled, or its coroutine is being closed.

        A ``KeyboardInterrupt`` ends the event loop all the same, in the loop's next step.
        """
        if self._is_ended_by(error):
            raise error
        if isinstance(error, KeyboardInterrupt):
            asyncio.get_running_loop().call_soon(_raise, error)

    def cancel(self) -> None:
        """Cancel the task at its next ``await``."""
        if self._task is not None:
            self._task.cancel()

    def interrupt(self) -> None:
        """Cancel what the task awaits, from another task, so that :meth:`resume` can undo it."""
        if self._task not in (None, _task_at_work()) and not self._interrupted:
            self._interrupted = True
            self._task.cancel()

    def resume(self) -> bool:
        """Undo :meth:`interrupt`; False when there was none, or the task was cancelled as well."""
        if self._task is None or not self._interrupted:
            return False
        self._interrupted = False
        return self._task.uncancel() <= self._cancels

    def _is_ended_by(self, error: BaseException) -> bool:
        if self._task is None:
            return isinstance(error, asyncio.CancelledError | GeneratorExit)
        if isinstance(error, asyncio.CancelledError):
            return self._task.cancelling() > self._cancels
        return isinstance(error, GeneratorExit) and _task_at_work() is not self._task


def _task_at_work() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        # The event loop has been closed.
        return None


def _raise(error: BaseException) -> NoReturn:
    raise error


def log_raised(text: str, error: BaseException) -> None:
    """Log an exception that ends here, with its traceback."""
    level = "CRITICAL" if isinstance(error, SystemExit) else "ERROR"
    logger.opt(exception=error, depth=1).log(level, text)
