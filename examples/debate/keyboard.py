"""Reads a terminal key by key while something else draws on it."""

import asyncio
import codecs
import os
import re
import sys
import termios
import tty
from types import TracebackType
from typing import Self

# A key, or the sequence that an arrow or function key sends.
_KEYS = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|.)?|.", re.DOTALL)

END_OF_INPUT = "\x04"
UP, DOWN = "\x1b[A", "\x1b[B"
PAGE_UP, PAGE_DOWN = "\x1b[5~", "\x1b[6~"


class Keyboard:
    """The keys of the terminal, without echo; leaving the context restores the terminal.

    Keys that were typed before are read too.
    """

    def __enter__(self) -> Self:
        self._keys: asyncio.Queue[str] = asyncio.Queue()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._terminal = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._terminal)
        tty.setcbreak(self._terminal, termios.TCSANOW)
        attributes = termios.tcgetattr(self._terminal)
        # Ctrl-Z is turned off: a suspended process would leave the shell a terminal without echo.
        attributes[6][termios.VSUSP] = bytes([os.fpathconf(self._terminal, "PC_VDISABLE") & 0xFF])
        termios.tcsetattr(self._terminal, termios.TCSANOW, attributes)
        asyncio.get_running_loop().add_reader(self._terminal, self._read)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._terminal)
        termios.tcsetattr(self._terminal, termios.TCSAFLUSH, self._before)

    async def read(self) -> str:
        """Wait for a key.

        Returns:
            The key, the sequence that it sends, or `END_OF_INPUT` at the end of the input.
        """
        return await self._keys.get()

    def _read(self) -> None:
        received = os.read(self._terminal, 4096)
        for key in _KEYS.findall(self._decoder.decode(received)):
            self._keys.put_nowait(key)
        if not received:
            asyncio.get_running_loop().remove_reader(self._terminal)
            self._keys.put_nowait(END_OF_INPUT)
