"""What the code of a bot builder raises within a tool: told from what ends the task, and logged."""

import asyncio

from loguru import logger


class OwnTask:
    """The task that runs some code, to tell what the code raised from what ends the task.

    Create it in that task, before the code runs.
    """

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._cancels = self._task.cancelling() if self._task else 0

    def is_ended_by(self, error: BaseException) -> bool:
        """Tell whether an exception ends the task itself and has to be passed on.

        Args:
            error: What the code raised.

        Returns:
            False for what came from within the code, such as the CancelledError of a task that it
            awaited, a Rust panic, or ``sys.exit()``.
        """
        match error:
            case KeyboardInterrupt():
                return True
            case asyncio.CancelledError():
                return self._task is None or self._task.cancelling() > self._cancels
            case GeneratorExit():
                # Python throws it into a coroutine that is dropped before its end, which must not
                # await any more; no task runs it then.
                return _running_task() is not self._task
            case _:
                return False

    def cancel(self) -> None:
        """Cancel the task at its next ``await``."""
        if self._task is not None:
            self._task.cancel()


def _running_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # No event loop runs.
        return None


def log_raised(where: str, error: BaseException, consequence: str) -> None:
    """Log an exception that is not passed on, with its traceback.

    Args:
        where: The code that raised it, e.g. ``"tool find_book"``.
        error: What it raised. ``SystemExit`` is logged as critical: the code expected the process
            to end.
        consequence: What happens instead, to follow a semicolon.
    """
    log = logger.opt(exception=error)
    if isinstance(error, SystemExit):
        log.critical(f"{where} raised SystemExit; the process goes on, and {consequence}")
    else:
        log.error(f"{where} raised {type(error).__name__}; {consequence}")
