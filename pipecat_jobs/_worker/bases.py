"""Where the mixin stands among the bases of a worker class."""

from collections.abc import Iterable

from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs.errors import MixinOrderError


def check_order(worker_class: type, mixin: type) -> None:
    """Refuse a class in which the mixin hides what one of Pipecat's or a bot's classes extends."""
    order = worker_class.__mro__
    above, behind = (order.index(kind) for kind in (mixin, BaseWorker))
    members = {
        name
        for part in mixin.__mro__[: mixin.__mro__.index(BaseWorker)]
        for name in vars(part)
        if not name.startswith("_")
    }
    for kind in order[above:behind]:
        if issubclass(mixin, kind):
            continue
        for name, member in vars(kind).items():
            # PipelineWorker's looks at messages that are not about jobs, and the mixin passes
            # those on.
            if name in members and member is not PipelineWorker.on_bus_message:
                raise MixinOrderError(
                    worker_class.__name__,
                    hidden=f"{kind.__name__}.{name}",
                    bases=_names(worker_class.__bases__),
                    write=_names(_reordered(worker_class.__bases__, mixin)),
                )


def _reordered(bases: tuple[type, ...], mixin: type) -> list[type]:
    """Put the bases that bring the mixin behind all others but its own bases."""

    def place(base: type) -> int:
        return 1 if issubclass(base, mixin) else 2 if issubclass(mixin, base) else 0

    return sorted(bases, key=place)


def _names(bases: Iterable[type]) -> list[str]:
    return [base.__name__ for base in bases]
