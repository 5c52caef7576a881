#!/bin/sh
# What a batch of rows costs in a compressed .h5ad.
#
# anndata 0.12.19 with h5py 3.14.0 (HDF5 1.14.6) and h5py 3.16.0 (HDF5 2.0.0); x86-64, Python 3.11.
#
# write_h5ad(compression="gzip") leaves the chunks of an array to h5py, and h5py gives (1000000, 30) float32 chunks of
# (15625, 1): columns. 128 rows touch 30 chunks, and a hundredth of each. HDF5 keeps unpacked chunks for the next batch, 1 MiB
# of them in HDF5 1, where these 30 take 1.8 MiB: so every batch unpacks all of them again. HDF5 2 keeps 8 MiB. (200000, 200)
# has chunks of (3125, 7), 29 across, 2.4 MiB. So the same loop over the same file takes a multiple of the time with an h5py
# that is two versions older, and no word tells why.
#
# Seen, processor time of a pass in batches of 128 rows over that of one read of all: 77 and 15 with HDF5 1, 1.6 and 1.1
# with HDF5 2.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/run.py" <<'PY'
import sys
import time
import warnings

import anndata
import h5py
import numpy as np

folder, slow = sys.argv[1], sys.argv[2] == "slow"
warnings.simplefilter("ignore")
for rows, columns, chunks in ((1_000_000, 30, (15625, 1)), (200_000, 200, None)):
    data = anndata.AnnData(np.zeros((rows, 1), np.float32))
    data.obsm["X_latent"] = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    data.write_h5ad(f"{folder}/x.h5ad", compression="gzip")
    with h5py.File(f"{folder}/x.h5ad") as file:
        array = file["obsm/X_latent"]
        start = time.process_time()
        array[:]
        whole = time.process_time() - start
        start = time.process_time()
        for batch in range(100):
            array[batch * 128 : (batch + 1) * 128]
        batches = (time.process_time() - start) * rows / (100 * 128)
        print(
            f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}: {array.shape} in chunks of {array.chunks}, "
            f"in batches of 128 rows {batches / whole:.1f} times one read"
        )
        assert chunks in (None, array.chunks)
        assert batches / whole > 5 if slow else batches / whole < 3
PY
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet anndata==0.12.19 h5py==3.14.0
"$folder/v/bin/python" "$folder/run.py" "$folder" slow
"$folder/v/bin/pip" install --quiet h5py==3.16.0
"$folder/v/bin/python" "$folder/run.py" "$folder" fast
