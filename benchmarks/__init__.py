"""What pipecat-jobs costs and saves, measured: ``python -m benchmarks``."""
