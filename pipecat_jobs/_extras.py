"""What to say when a package is missing that only an extra of this one brings."""


def name_extra(error: ModuleNotFoundError, needs: tuple[str, ...], extra: str) -> None:
    """Say which extra to install, if the missing package is one that it brings.

    Args:
        error: What importing raised.
        needs: The packages that the extra brings.
        extra: The extra's name.

    Raises:
        ImportError: If the missing package is one of them.
    """
    missing = (error.name or "").partition(".")[0]
    if missing in needs:
        raise ImportError(
            f"the package '{missing}' is missing; run: pip install \"pipecat-jobs[{extra}]\"",
            name=missing,
        ) from error
