#!/bin/sh
# What torch.compiler.disable and allow_in_graph import when a function is only decorated.
#
# torch 2.13.0, CPU.
#
# They tell torch.compile something about a function, for later. `import torch` loads neither Dynamo nor sympy; decorating one function,
# in a program that compiles nothing, loads both, and torch.distributed.fsdp: more than 500 modules, and a second of processor time.
#
# Seen: the modules below, and the seconds that they took.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0
for decorator in disable allow_in_graph; do
"$folder/v/bin/python" - $decorator <<'PY'
import sys
import time

import torch

heavy = ("torch._dynamo", "sympy", "torch.distributed.fsdp")
assert not any(name in sys.modules for name in heavy)
before, start = len(sys.modules), time.process_time()
getattr(torch.compiler, sys.argv[1])(lambda x: x)
seconds = time.process_time() - start
print("torch", torch.__version__, sys.argv[1], "loads", len(sys.modules) - before, "modules in", round(seconds, 1), "s")
assert all(name in sys.modules for name in heavy)
assert len(sys.modules) - before > 500
PY
done
