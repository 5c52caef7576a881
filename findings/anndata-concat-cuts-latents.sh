#!/bin/sh
# What anndata.concat makes of latents of two models.
#
# anndata 0.12.19, NumPy 2.4.0; Python 3.11.
#
# join= is about variables, the genes. It rules the columns of the arrays in obsm too, by their place: with "inner", the
# default, cells that have 10 latents in obsm["X_scVI"] and cells that have 8 come out with the first 8, as if latent 3 of one
# model were latent 3 of the other, and 9 and 10 of the first are gone. With "outer" there are 10, and NaN. No warning or
# error, though layers or X of other shapes raise elsewhere. Whatever counts the latents that are in use then counts 8.
#
# Seen: (5, 8) of (3, 10) and (2, 8) by default; (5, 10) with 4 NaN by join="outer".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet anndata==0.12.19 numpy==2.4.0
"$folder/v/bin/python" -W error::UserWarning - <<'PY'
import anndata
import numpy as np


def cells(name, count, latents):
    data = anndata.AnnData(np.zeros((count, 1), np.float32))
    data.obs_names = [f"{name}{i}" for i in range(count)]
    data.obsm["X_scVI"] = np.arange(count * latents, dtype=np.float32).reshape(count, latents)
    return data


a, b = cells("a", 3, 10), cells("b", 2, 8)
default = anndata.concat([a, b]).obsm["X_scVI"]
outer = anndata.concat([a, b], join="outer").obsm["X_scVI"]
print(f"default {default.shape}, outer {outer.shape} with {int(np.isnan(outer).sum())} NaN")
np.testing.assert_array_equal(default, np.concatenate([a.obsm["X_scVI"][:, :8], b.obsm["X_scVI"]]))
assert outer.shape == (5, 10) and np.isnan(outer[3:, 8:]).all() and np.isnan(outer).sum() == 4
PY
