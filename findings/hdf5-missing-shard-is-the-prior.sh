#!/bin/sh
# A virtual dataset of HDF5 one of whose files is gone.
#
# h5py 3.16.0 (HDF5 2.0.0), NumPy 2.4.0; x86-64, Python 3.11.
#
# A virtual dataset puts shards of several files together. If one is not there when it is read, having been moved or not
# copied, or if it is in another folder than the one from which names are looked up, its rows are the fill value: zero. No
# error or warning, in HDF5 or h5py. Means of 0 and log-variances of 0 are the prior, so in a file of posteriors a lost shard
# is a collapse of all latents in a third of the data. An external link to a missing file raises KeyError. fillvalue=nan in
# create_virtual_dataset makes the loss seen.
#
# Seen: after one of three files is renamed its rows are 0, the KL of each of their latents 0.0; NaN with fillvalue; the link
# raises.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet h5py==3.16.0 numpy==2.4.0
cd "$folder"
"$folder/v/bin/python" -W error - <<'PY'
import os

import h5py
import numpy as np

rows, latents = 4, 2
for shard in range(3):
    with h5py.File(f"shard{shard}.h5", "w") as file:
        file["mean"] = np.full((rows, latents), 1.0, np.float32)
        file["logvar"] = np.full((rows, latents), -2.0, np.float32)
with h5py.File("all.h5", "w") as file:
    for name in ("mean", "logvar"):
        layout = h5py.VirtualLayout((3 * rows, latents), np.float32)
        for shard in range(3):
            layout[shard * rows : (shard + 1) * rows] = h5py.VirtualSource(f"shard{shard}.h5", name, (rows, latents))
        file.create_virtual_dataset(name, layout)
        file.create_virtual_dataset(f"{name} nan", layout, fillvalue=np.nan)
    file["link"] = h5py.ExternalLink("shard1.h5", "mean")


def kl():
    with h5py.File("all.h5") as file:
        mean, logvar = file["mean"][:], file["logvar"][:]
        marked = np.isnan(file["mean nan"][:]).any(1)
        try:
            file["link"]
            link = "is read"
        except KeyError:
            link = "raises"
    return (0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)).sum(1), marked, link


before, after = kl(), (os.rename("shard1.h5", "moved.h5"), kl())[1]
print("KL of each row", before[0].round(2), "then", after[0].round(2), "; the link", after[2])
assert (before[0] > 1).all() and not before[1].any() and before[2] == "is read"
assert (after[0] == 0).tolist() == after[1].tolist() == [False] * rows + [True] * rows + [False] * rows
assert after[2] == "raises"
PY
