#!/bin/sh
# All that one GPU machine can prove and measure, in under nine minutes: bench/gpu.py says what, and with which
# options. PYTHON names the interpreter, one with torch; else .venv's or the first of the PATH.
set -eu
cd "$(dirname "$0")/.."
for python in ${PYTHON:-.venv/bin/python python3}; do
  if "$python" -c "import torch" 2>/dev/null; then
    exec "$python" bench/gpu.py "$@"
  fi
done
echo "bench/gpu.sh: torch cannot be imported by ${PYTHON:-.venv/bin/python or python3}; name a Python in PYTHON" >&2
exit 2
