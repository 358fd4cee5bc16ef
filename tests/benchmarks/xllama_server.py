"""The native llama.cpp server in a process of its own: MODEL THREADS PARALLEL CONTEXT unified|split.

Runs in the benchmark's private environment (rivals.py). Prints its address, ends with its input.
"""

from __future__ import annotations

import sys

import xllamacpp


def main() -> None:
    model, threads, parallel, context, kind = sys.argv[1:]
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = int(context)
    parameters.n_parallel = int(parallel)
    parameters.kv_unified = kind == "unified"
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
