"""Explains errors of the server, and what to do about them."""

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
#: Explanations, by the code that an error of Redis begins with.
_MEANINGS = {
    "NOAUTH": "it wants a password; put it into the URL: redis://user:password@host",
    "WRONGPASS": "the user's name or the password is wrong; check the URL",
    "NOPERM": "the user lacks a right; docs/how-to/distributed.md lists those that the bus needs",
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
#: Types of errors from which redis-py removes the code.
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
# If Redis 6 stopped a script, the code is not at the beginning of the error.
_CODE = re.compile(rf"\b({'|'.join(_MEANINGS)})\b")
#: Texts that redis-py has in place of a code, where it has no type for the error.
_TEXTS = {
    "Authentication required.": "NOAUTH",
    "HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> "
    "<pass> option can be used to authenticate the client and select the RESP protocol version at "
    "the same time": "NOAUTH",
    "invalid username-password pair or user is disabled.": "WRONGPASS",
    "invalid password": "WRONGPASS",
}


def find_code(error: Exception) -> str | None:
    """Return the code of an error of the server, or None if the code is not known."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    text = str(error)
    code = _CODE.search(text)
    return code.group() if code else _TEXTS.get(text)


def explain(error: Exception) -> str:
    """Explain an error of the server in a sentence, followed by the text of the error."""
    code, text = find_code(error), str(error) or type(error).__name__
    if code is None:
        return text
    return f"{_MEANINGS[code]} ({text if code in text else f'{code} {text}'})"


def is_of_cluster(error: BaseException | None) -> bool:
    """Return whether only a node of a Redis Cluster replies with an error like this."""
    return isinstance(error, Exception) and _MEANINGS.get(find_code(error) or "") is _CLUSTER
