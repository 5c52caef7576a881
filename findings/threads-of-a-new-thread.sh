#!/bin/sh
# How many threads a matrix product takes in a Python thread that was started after torch.set_num_threads(1).
#
# torch 2.13.0, CPU, Linux, a machine with at least two cores and an OpenMP that would use two.
#
# torch.set_num_threads(1) holds for the thread that calls it. In a new Python thread a matrix product takes as many threads as
# OpenMP allows until something there asks torch for the number: an elementwise operation that torch splits itself, or
# torch.get_num_threads(), whose answer is 1 all the while. So a server or a loader that limits torch in its main thread and computes
# in others takes all cores all the same, and looking at the limit mends it.
#
# Seen, by counting the process's threads in /proc after a product of two 512 x 512 matrices: in the main thread none is added; in a
# new thread one for OMP_NUM_THREADS=2, and none where get_num_threads() was called there before.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0
for case in main new new-asks; do
OMP_NUM_THREADS=2 "$folder/v/bin/python" - $case <<'PY'
import os
import sys
from threading import Thread

import torch

case = sys.argv[1]
torch.set_num_threads(1)
a = torch.ones(512, 512)


def count():
    before = len(os.listdir("/proc/self/task"))
    if case == "new-asks":
        assert torch.get_num_threads() == 1
    for _ in range(3):
        a @ a
    found.append(len(os.listdir("/proc/self/task")) - before)


found = []
if case == "main":
    count()
else:
    thread = Thread(target=count)
    thread.start()
    thread.join()
print("torch", torch.__version__, case, "threads added:", found[0])
assert found[0] == (case == "new")
PY
done
