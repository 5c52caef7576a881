#!/bin/sh
# The weight of the KL that scVI trains with by default, by the number of cells.
#
# scvi-tools 1.4.2, torch 2.13.0; CPU.
#
# Two defaults of train() meet. The KL weight rises from 0 to 1 over 400 epochs; and the number of epochs is 400 up to
# 20 000 cells and 8 million over the number of cells beyond. So with more than 20 000 cells the warm-up does not end: the last
# weight is 0.4 of 50 000 cells, 0.0975 of 200 000, 0.0175 of a million, and from 6 million on there is one epoch, whose weight
# is 0: an autoencoder. The number of cells is that of the AnnData, whatever train_size. No warning; history["kl_weight"]
# has it, while elbo_train is the ELBO with the weight 1.
#
# So which latents are collapsed, and how many are in use, depends on the number of cells. Counts of 20 genes from 2 latents,
# 200 000 cells, scVI with its 10 latents, 40 epochs either way: by default all 10 are alive, with a mean KL of 0.93 nats or
# more each. With n_epochs_kl_warmup=1 two are alive, the other eight have at most 0.001; and the ELBO of cells left out
# is 7 nats higher, their log-likelihood 5.
#
# Seen: last weight 0.0975, KL 13.2 nats, 10 latents alive, ELBO -48.8, log-likelihood -45.8; with the warm-up of one epoch
# 1, 2.04, 2, -41.5 and -41.2.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 anndata==0.12.19 scvi-tools==1.4.2
cd "$folder"
"$folder/v/bin/python" -W ignore - <<'PY'
import logging

import anndata
import numpy as np
import scvi
import torch
from scvi.model._utils import get_max_epochs_heuristic

torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
epochs = {cells: get_max_epochs_heuristic(cells) for cells in (20_000, 50_000, 200_000, 1_000_000, 6_000_000)}
print("epochs by cells", epochs)
assert epochs == {20_000: 400, 50_000: 160, 200_000: 40, 1_000_000: 8, 6_000_000: 1}

random = np.random.default_rng(0)
z = random.normal(size=(200_000, 2)) @ random.normal(size=(2, 20))
data = anndata.AnnData(random.poisson(np.exp(0.5 * z + 1)).astype(np.float32))
scvi.model.SCVI.setup_anndata(data)


def train(**plan):
    scvi.settings.seed = 0
    model = scvi.model.SCVI(data, n_hidden=32)
    model.train(train_size=0.03, validation_size=0.005, accelerator="cpu", enable_progress_bar=False, plan_kwargs=plan)
    weights = model.history["kl_weight"].to_numpy().ravel()
    assert len(weights) == 40
    mean, variance = model.get_latent_representation(indices=model.train_indices, return_dist=True)
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).mean(0)
    left_out = model.validation_indices
    elbo = float(model.get_elbo(indices=left_out))
    likelihood = model.get_marginal_ll(indices=left_out[:300], n_mc_samples=200)
    print(f"{plan or 'default'}: last KL weight {float(weights[-1]):.4f}, KL {kl.sum():.2f} of {np.sort(kl).round(3)}, "
          f"ELBO {elbo:.1f}, log-likelihood {likelihood:.1f}")
    return float(weights[-1]), int((kl > 0.01).sum()), elbo, likelihood


weight, alive, elbo, likelihood = train()
assert abs(weight - 39 / 400) < 1e-6 and alive == 10
full_weight, full_alive, full_elbo, full_likelihood = train(n_epochs_kl_warmup=1)
assert full_weight == 1 and full_alive == 2
assert full_elbo > elbo + 4 and full_likelihood > likelihood + 2
PY
