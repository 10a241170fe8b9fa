"""Prints the time that importing pipecat_jobs takes, and the modules that it imports.

Run it in a new interpreter. Its arguments are the modules to import before.
"""

import importlib
import json
import sys
import time

began = time.perf_counter()
for module in sys.argv[1:]:
    importlib.import_module(module)
beforehand = time.perf_counter() - began

known = set(sys.modules)
began = time.perf_counter()
importlib.import_module("pipecat_jobs")
took = time.perf_counter() - began

json.dump(
    {
        "beforehand": 1000 * beforehand,
        "took": 1000 * took,
        "modules": [module for module in sys.modules if module not in known],
    },
    sys.stdout,
)
