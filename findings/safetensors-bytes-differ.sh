#!/bin/sh
# Whether saving the same tensors twice gives the same bytes.
#
# safetensors 0.8.0, NumPy 2.4.0.
#
# The entries of the tensors stand in the header in a fixed order, those of the metadata in one that is drawn anew at every call. So
# the same tensors with the same metadata of several keys give files that differ, within one process and between two; with no
# metadata, or with one key, they are the same. A checksum of the file, a cache or a store that goes by content, and a test
# that compares files take equal checkpoints for different ones. Compare what load_file and metadata() give, or put all
# metadata into one key, as JSON with sorted keys.
#
# Seen: 50 saves with eight keys give more than 40 different files, all of one length, which load as equal; with one key, or none, and
# six tensors all are one.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.0
"$folder/v/bin/python" - <<'PY'
import json

import numpy as np
import safetensors
from safetensors.numpy import load, save

tensors = {name: np.arange(3.0) + ord(name) for name in "abcdef"}
keys = {name: f"value {name}" for name in "abcdefgh"}
saved = {
    "eight keys": {save(tensors, keys) for _ in range(50)},
    "one key": {save(tensors, {"all": json.dumps(keys, sort_keys=True)}) for _ in range(50)},
    "none": {save(tensors) for _ in range(50)},
}
found = {case: len(files) for case, files in saved.items()}
print("safetensors", safetensors.__version__, "different files of 50:", found)
assert found["eight keys"] > 40 and found["one key"] == found["none"] == 1
assert len({len(file) for file in saved["eight keys"]}) == 1
for file in saved["eight keys"]:
    assert all((array == tensors[name]).all() for name, array in load(file).items())
PY
