#!/bin/sh
# numpy.savez_compressed(..., allow_pickle=False) before and after the keyword exists.
#
# NumPy 1.26.4 and 2.4.0.
#
# The keyword that keeps pickled objects out of a file is new in NumPy 2. NumPy 1 takes it, as any
# other keyword, for the name of an array: the file holds one more, allow_pickle, a 0-d bool, without an error. What
# iterates over the file, or takes a checksum of its arrays, sees it; and objects are pickled as before.
#
# Seen: 1.26.4 stores the arrays allow_pickle and x, 2.4.0 only x.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 1.26.4 2.4.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet numpy==$version
  "$folder/$version/bin/python" - "$folder/file.npz" <<'PY'
import sys

import numpy as np

np.savez_compressed(sys.argv[1], allow_pickle=False, x=np.zeros(3))
names = sorted(np.load(sys.argv[1]).files)
print(np.__version__, names)
assert names == (["allow_pickle", "x"] if np.__version__ < "2" else ["x"])
PY
done
