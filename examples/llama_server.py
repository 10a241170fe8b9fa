"""A llama.cpp server on loopback: ``python llama_server.py WEIGHTS SLOTS CONTEXT``.

It prints its address when it has loaded the weights, and ends when its standard input is closed:
so it ends with the process that started it, even if that process is killed.
"""

import os
import sys

import xllamacpp


def serve(weights: str, slots: int, context: int) -> None:
    """Serve until the standard input is closed.

    Args:
        weights: The path of the model's weights, a GGUF file.
        slots: How many requests are answered at once; further ones wait.
        context: How many tokens a request and its answer may have.
    """
    params = xllamacpp.CommonParams()
    params.model.path = weights
    params.n_parallel = slots
    params.n_ctx = slots * context
    params.n_gpu_layers = 0
    params.fit_params = False
    # The rest of the machine is for the bot, which is live.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # No copy of a finished conversation is kept in memory.
    params.cache_ram_mib = 0
    params.ui = False
    params.verbosity = 1  # Errors.
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    # The server's own end waits for the answers that it generates, which nobody reads.
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
