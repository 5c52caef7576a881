#!/bin/sh
# safetensors' NumPy writer and arrays that are views.
#
# safetensors 0.8.0, NumPy 2.4.0, pandas 2.3.3; 0.7.0 writes the same arrays right.
#
# save_file copies the memory of an array as it lies there and ignores its strides: what is read back has the right shape
# and dtype and the values in another order. Halves of a network's output, np.split(h, 2, axis=1), transposes and
# DataFrame.to_numpy() of frames with a column each are such views. No error, and the file is valid, so no reader can
# tell. np.ascontiguousarray first; torch's writer, safetensors.torch, refuses views with an error.
#
# Seen: 0.8.0 gives back other values for a transpose, a half and a frame; 0.7.0 gives back what was saved.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 0.7.0 0.8.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet numpy==2.4.0 pandas==2.3.3 safetensors==$version
  "$folder/$version/bin/python" - "$folder/file.safetensors" <<'PY'
import sys

import numpy as np
import pandas as pd
import safetensors
from safetensors.numpy import load_file, save_file

output = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
mean, logvar = np.split(output, 2, axis=1)
frame = pd.DataFrame({name: column for name, column in zip("abc", mean.T)}).to_numpy()
arrays = {"mean": mean, "logvar": logvar, "transpose": output.T, "frame": frame}
save_file(arrays, sys.argv[1])
back = load_file(sys.argv[1])
same = {name: bool(np.array_equal(back[name], array)) for name, array in arrays.items()}
print(safetensors.__version__, same)
assert all(back[name].shape == array.shape for name, array in arrays.items())
assert set(same.values()) == {safetensors.__version__ == "0.7.0"}
PY
done
