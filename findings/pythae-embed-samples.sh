#!/bin/sh
# What the embedding of a pythae VAE is.
#
# pythae 0.1.2, torch 2.13.0.
#
# model.embed(x) is a sample of the posterior, another at each call, and not the mean; reconstruct(x) decodes one.
# model.predict(x).embedding is the mean. Active units are latents whose posterior mean varies over the data by more than
# 0.01, and embed() varies by its own noise: the less a VAE has learned, the more. An untrained one, each of whose latents is
# near the prior, has all of them active by embed() and none by the means.
#
# Seen: two calls of embed() differ; variances over 1000 rows of 0.9 to 1.1, four active units of four, where the means' are
# below 0.008 and none is.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 pythae==0.1.2
"$folder/v/bin/python" -W ignore - <<'PY'
import torch
from pythae.models import VAE, VAEConfig

torch.manual_seed(0)
model = VAE(VAEConfig(input_dim=(8,), latent_dim=4)).eval()
x = torch.rand(1000, 8)
with torch.no_grad():
    first, second, mean = model.embed(x), model.embed(x), model.encoder(x).embedding
    assert torch.equal(model.predict(x).embedding, mean)
    assert not torch.equal(model.reconstruct(x), model.reconstruct(x))
print("variance by embed()", first.var(0).tolist())
print("variance of the means", mean.var(0).tolist())
assert not torch.equal(first, second)
assert int((first.var(0) > 0.01).sum()) == 4 and int((mean.var(0) > 0.01).sum()) == 0
PY
