#!/bin/sh
# How often torch.utils.checkpoint runs what it recomputes.
#
# torch 2.13.0, CPU.
#
# With use_reentrant=False the recomputation in the backward stops as soon as the last tensor that was saved is there
# again. What comes after it in the region, a module's forward hook, a counter, a running statistic, runs once; what comes
# before runs twice. So whether a hook counts a batch once or twice depends on the operation after its module: one that
# saves nothing, such as a sum, or one that saves its output, such as exp. A test of double counting passes by accident.
#
# Seen: a hook on the last module runs once under .sum(), twice under .exp().sum(), and twice under both with
# torch.utils.checkpoint.set_checkpoint_early_stop(False).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0
"$folder/v/bin/python" - <<'PY'
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop


def calls(after, early_stop=True):
    count = 0

    def hook(*_):
        nonlocal count
        count += 1

    module = torch.nn.Linear(3, 2)
    module.register_forward_hook(hook)
    with set_checkpoint_early_stop(early_stop):
        checkpoint(lambda x: after(module(x)), torch.rand(4, 3), use_reentrant=False).backward()
    return count


counts = {
    "sum": calls(lambda h: h.sum()),
    "exp, sum": calls(lambda h: h.exp().sum()),
    "sum, no early stop": calls(lambda h: h.sum(), early_stop=False),
}
print(counts)
assert counts == {"sum": 1, "exp, sum": 2, "sum, no early stop": 2}
PY
