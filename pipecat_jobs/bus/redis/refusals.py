"""What an error of the server means, and what to do about it."""

import re

from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

_CLUSTER = (
    "it is a node of a Redis Cluster, which the bus does not support; give it a server without "
    "cluster mode"
)
#: By the word that the error begins with.
_MEANINGS = {
    "NOAUTH": "it wants a password; put it into the URL: redis://user:password@host",
    "WRONGPASS": "the user's name or the password is wrong; check the URL",
    "NOPERM": "the user lacks a right; docs/distributed.md lists those that the bus needs",
    "DENIED": "it is in protected mode and takes no connections from other machines",
    "OOM": "its memory is full; raise maxmemory, or remove what else is stored there",
    "READONLY": "it is a replica; give the address of the primary",
    "MASTERDOWN": "it is a replica that has lost its primary",
    "NOREPLICAS": "it has fewer replicas than min-replicas-to-write asks for",
    "MISCONF": "it cannot save its data to disk, and takes no writes until it can",
    "LOADING": "it is still reading its data from disk",
    "BUSY": "another script has been running for too long",
    "NOSCRIPT": "it has forgotten the scripts of the bus",
    "WRONGTYPE": "another program has written to a key of the channel",
    "MOVED": _CLUSTER,
    "ASK": _CLUSTER,
    "TRYAGAIN": _CLUSTER,
    "CLUSTERDOWN": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
}
#: Types of errors from which redis-py removes that word.
_CODES: dict[type[Exception], str] = {
    NoPermissionError: "NOPERM",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    MasterDownError: "MASTERDOWN",
    BusyLoadingError: "LOADING",
    NoScriptError: "NOSCRIPT",
    # A subclass of AskError.
    MovedError: "MOVED",
    AskError: "ASK",
    TryAgainError: "TRYAGAIN",
    ClusterDownError: "CLUSTERDOWN",
    ClusterCrossSlotError: "CROSSSLOT",
}
# Redis 6 has the word somewhere in the error when it stopped a script.
_WORD = re.compile(rf"\b({'|'.join(_MEANINGS)})\b")
#: Texts that redis-py has in place of a word, where it has no type for it.
_SAID = {
    "Authentication required.": "NOAUTH",
    "invalid username-password pair or user is disabled.": "WRONGPASS",
    "invalid password": "WRONGPASS",
}


def find_code(error: Exception) -> str | None:
    """Return the word that the server's error began with, or None if it is not a known one."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    said = str(error)
    word = _WORD.search(said)
    return word.group() if word else _SAID.get(said)


def explain(error: Exception) -> str:
    """Explain an error of the server in a sentence, followed by the server's own words."""
    code, said = find_code(error), str(error) or type(error).__name__
    if code is None:
        return said
    return f"{_MEANINGS[code]} ({said if code in said else f'{code} {said}'})"


def is_of_cluster(error: BaseException | None) -> bool:
    """Return whether an error is one that only a node of a Redis Cluster answers with."""
    return isinstance(error, Exception) and _MEANINGS.get(find_code(error) or "") is _CLUSTER
