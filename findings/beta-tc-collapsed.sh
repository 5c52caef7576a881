#!/bin/sh
# What minibatch weighted sampling says of a posterior that has collapsed, in pythae's BetaTCVAE.
#
# pythae 0.1.2, torch 2.13.0.
#
# With use_mss=False log q(z) is estimated as in Chen et al. (2018), logsumexp over the minibatch minus log(N M). Where
# the posterior is the prior for every x, the mutual information and the total correlation are zero; so estimated they
# are log N and (K - 1) log N, whatever the batch. With α = β = γ = 1 these constants cancel, and reg_loss is the KL. With
# β = 6, 10 latents and 60 000 images reg_loss is 495 nats, (β - 1)(K - 1) log N, of a model whose KL is zero. The gradient
# is right, but the losses of two β, two K or two sizes of data do not compare, nor does reg_loss show collapse. Without
# dataset_size, as in a call by hand, N is the batch's: 218 nats. use_mss=True, the default, gives zero.
#
# Seen: reg_loss 0 at β = 1; 495.094 at β = 6, (β - 1)(K - 1) log N = 495.094; 218.341 without dataset_size; 0 by use_mss.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 pythae==0.1.2
"$folder/v/bin/python" -W ignore - <<'PY'
import math

import torch
from pythae.models import BetaTCVAE, BetaTCVAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder

K, N, BATCH = 10, 60_000, 128


class Collapsed(BaseEncoder):
    def forward(self, x):
        return ModelOutput(embedding=torch.zeros(len(x), K), log_covariance=torch.zeros(len(x), K))


class Decoder(BaseDecoder):
    def forward(self, z):
        return ModelOutput(reconstruction=torch.zeros(len(z), 4))


def reg_loss(beta, use_mss, **options):
    config = BetaTCVAEConfig(input_dim=(4,), latent_dim=K, beta=beta, use_mss=use_mss)
    torch.manual_seed(0)
    return BetaTCVAE(config, Collapsed(), Decoder())({"data": torch.zeros(BATCH, 4)}, **options).reg_loss.item()


constant = 5 * (K - 1) * math.log(N)
plain, weighted, by_hand = reg_loss(1, False, dataset_size=N), reg_loss(6, False, dataset_size=N), reg_loss(6, False)
stratified = reg_loss(6, True, dataset_size=N)
print(f"KL 0; reg_loss {plain:.3f} at beta 1, {weighted:.3f} at beta 6, (beta - 1)(K - 1) log N = {constant:.3f}")
print(f"{by_hand:.3f} without dataset_size, {stratified:.3f} with use_mss")
assert abs(plain) < 0.01 and abs(stratified) < 0.01
assert abs(weighted - constant) < 0.01
assert abs(by_hand - 5 * (K - 1) * math.log(BATCH)) < 0.01
PY
