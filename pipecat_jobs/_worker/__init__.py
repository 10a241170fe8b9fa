"""The door: the mixin, the only place that knows Pipecat's worker."""
