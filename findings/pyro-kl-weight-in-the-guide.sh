#!/bin/sh
# Where β of a β-VAE, or of annealing, has to stand in Pyro.
#
# pyro-ppl 1.9.2, torch 2.13.0; CPU.
#
# poutine.scale(scale=β) around the latent weighs its KL. TraceMeanField_ELBO, which has the KL in closed form, looks at the
# scale in the guide and never at the one in the model: a β around the prior alone, where the KL's term is in the formulas, is
# without effect, and one in the guide alone is the whole effect. Trace_ELBO takes β log p(z) from the model and log q(z)
# from the guide, so it needs both, and with one of them it is no ELBO of any β. Neither warns. β that is annealed in the
# model alone trains the VAE without annealing under the one loss, and another objective under the other.
#
# Seen, KL term over the KL for β = 0.1 in both, in the model alone, in the guide alone: 0.1, 1 and 0.1 by TraceMeanField_ELBO, 0.10,
# 0.54 and 0.56 by Trace_ELBO.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 pyro-ppl==1.9.2
OMP_NUM_THREADS=1 "$folder/v/bin/python" -W error::UserWarning - <<'PY'
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

N, K = 100, 3
kl = torch.distributions.kl_divergence(torch.distributions.Normal(0.0, 0.1), torch.distributions.Normal(0.0, 1.0)).item()


def weight(loss, in_model, in_guide):
    def model():
        with pyro.plate("data", N), poutine.scale(scale=in_model):
            pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))

    def guide():
        with pyro.plate("data", N), poutine.scale(scale=in_guide):
            pyro.sample("z", dist.Normal(torch.zeros(K), 0.1).to_event(1))

    return sum(loss.loss(model, guide) for _ in range(200)) / 200 / (N * K * kl)


pyro.set_rng_seed(0)
places = {"both": (0.1, 0.1), "model": (0.1, 1.0), "guide": (1.0, 0.1)}
found = {}
for loss in (TraceMeanField_ELBO(), Trace_ELBO()):
    name = type(loss).__name__
    found[name] = {place: weight(loss, *scales) for place, scales in places.items()}
    print(name, {place: round(value, 3) for place, value in found[name].items()})
for place, right in (("both", 0.1), ("model", 1.0), ("guide", 0.1)):
    assert abs(found["TraceMeanField_ELBO"][place] - right) < 1e-4
for place, seen in (("both", 0.1), ("model", 0.54), ("guide", 0.56)):
    assert abs(found["Trace_ELBO"][place] - seen) < 0.03
PY
