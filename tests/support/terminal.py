"""A pseudo-terminal, and a program that runs in it."""

import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Terminal:
    """A program at a terminal of 80 by 24.

    Args:
        *command: The program and its arguments.
    """

    def __init__(self, *command: str):
        import fcntl
        import pty
        import termios

        self._termios = termios
        self._ours, self._theirs = pty.openpty()
        termios.tcsetwinsize(self._theirs, (24, 80))
        self.settings = termios.tcgetattr(self._theirs)

        def take_terminal() -> None:
            # Ctrl-C is for the process whose controlling terminal this is, also where the tests
            # run in a shell's background, which ignores it.
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color"},
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        self._unread = ""
        self.shown = ""
        """All that was shown so far."""

    def wait_for(self, *texts: str) -> None:
        """Read on until each text was shown, in this order."""
        deadline = time.monotonic() + 2000
        for text in texts:
            while text not in self._unread:
                assert time.monotonic() < deadline, f"no {text!r} in {self._unread[-3000:]!r}"
                self._read(timeout=1)
            self._unread = self._unread.partition(text)[2]

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_exit(self) -> int:
        """Wait for the end, and return the exit code."""
        deadline = time.monotonic() + 200
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not exit"
            self._read(timeout=0.1)
        self._read(timeout=0)
        return self.process.returncode

    @property
    def unread(self) -> str:
        return self._unread

    @property
    def is_as_before(self) -> bool:
        return self._termios.tcgetattr(self._theirs) == self.settings

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def _read(self, *, timeout: float) -> None:
        while select.select([self._ours], [], [], timeout)[0]:
            received = os.read(self._ours, 65536).decode(errors="ignore")
            text = re.sub(r"\x1b\[[0-9;]*m", "", received)
            self.shown += text
            self._unread += text
            timeout = 0
