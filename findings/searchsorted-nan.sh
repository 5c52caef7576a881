#!/bin/sh
# Where torch.searchsorted finds a number in a sequence that torch.sort has sorted, if NaN is in it.
#
# torch 2.13.0, CPU; numpy 2.4.0.
#
# torch.sort, as NumPy's, puts NaN last. torch.searchsorted and torch.bucketize halve the sequence by comparisons, and every
# comparison with NaN is false, which they take for "go right". So a NaN in the middle of what is left sends the search past it:
# with more NaN than numbers every value is said to be greater than all. There is no error. numpy.searchsorted orders NaN as its sort
# does. Counts of values below a threshold, taken from a sorted tensor, then include the NaN.
#
# Seen, for 0.5, 1.5 and 3 in [1, 2, nan, nan, nan]: torch 5, 5, 5; NumPy 0, 1, 2. In [1, 2, nan]: torch 0, 1, 3; NumPy 0, 1, 2.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0
"$folder/v/bin/python" - <<'PY'
import numpy as np
import torch

nan = float("nan")
values = torch.tensor([0.5, 1.5, 3.0])
for given, by_torch in (([nan, 2.0, 1.0], [0, 1, 3]), ([nan, 2.0, nan, 1.0, nan], [5, 5, 5])):
    sequence = torch.sort(torch.tensor(given)).values
    found = torch.searchsorted(sequence, values).tolist()
    buckets = torch.bucketize(values, sequence).tolist()
    right = np.searchsorted(sequence.numpy(), values.numpy()).tolist()
    print(sequence.tolist(), "torch", torch.__version__, found, buckets, "numpy", np.__version__, right)
    assert found == buckets == by_torch
    assert right == [0, 1, 2]
PY
