"""``python -m examples.receptionist``: a guest talks with the receptionist.

With ``--voice`` they speak, with a simulated voice: each line is a speech with the time at which it
began, and what was cut off is marked.
"""

import asyncio
import os
import sys

# Pipecat logs as it is imported, so the level is set before.
os.environ.setdefault("LOGURU_LEVEL", "ERROR")

from examples.receptionist.text import write
from examples.receptionist.voice import speak
from pipecat_jobs.testing import run_virtual

if __name__ == "__main__":
    if "--voice" in sys.argv[1:]:
        # A minute of conversation takes a second.
        print("\n".join(run_virtual(speak())))
    else:
        asyncio.run(write())
