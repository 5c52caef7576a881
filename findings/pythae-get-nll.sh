#!/bin/sh
# pythae's VAE.get_nll and its IWAE loss, on a linear model whose likelihood is known exactly.
#
# pythae 0.1.2, torch 2.13.0.
#
# get_nll returns the log-likelihood, not its negative: -10.303 where log p(x) is -10.304 nats. n_samples=1 takes
# batch_size samples (100 by default) for each data point, a bound that one sample is far from; n_samples=250 takes 200,
# whole batches only.
#
# IWAE's loss has the gradient of the importance-weighted bound but not its value: it is -Σ w̃ log w, with normalised
# weights w̃, in place of -log 1/S Σ w. With an encoder that gives the prior and 100 samples it is 8.52 (the constant of
# the Gaussian, which pythae leaves out, added): below -log p(x), where no bound can be; the bound is 10.39. So these
# losses of two models or two S do not compare, and a validation loss picks the wrong checkpoint.
#
# Seen: 100 and 200 samples a data point; get_nll within 0.05 nats of +log p(x); IWAE's loss 1.79 nats below -log p(x).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 pythae==0.1.2
"$folder/v/bin/python" -W ignore - <<'PY'
import torch
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder

D, K, N = 6, 2, 200
torch.manual_seed(0)
W = torch.randn(D, K)
data = torch.randn(N, K) @ W.T + torch.randn(N, D)
exact = torch.distributions.MultivariateNormal(torch.zeros(D), W @ W.T + torch.eye(D)).log_prob(data).mean().item()
M = W.T @ W + torch.eye(K)


class Encoder(BaseEncoder):
    def forward(self, x):
        mean = torch.linalg.solve(M, W.T @ x.T).T
        return ModelOutput(embedding=mean, log_covariance=-M.diagonal().log().expand(len(x), K))


class Decoder(BaseDecoder):
    rows = 0

    def forward(self, z):
        Decoder.rows += len(z)
        return ModelOutput(reconstruction=z @ W.T)


vae = VAE(VAEConfig(input_dim=(D,), latent_dim=K), Encoder(), Decoder())
rows, estimates = {}, {}
for n_samples in (1, 250):
    Decoder.rows = 0
    with torch.no_grad():
        estimates[n_samples] = vae.get_nll(data, n_samples=n_samples)
    rows[n_samples] = Decoder.rows // N
print(f"log p(x) {exact:.3f}, get_nll(n_samples=1) {estimates[1]:.3f} from {rows[1]} samples; "
      f"get_nll(n_samples=250) from {rows[250]} samples")
assert rows == {1: 100, 250: 200}
assert abs(estimates[1] - exact) < 0.05



class Prior(BaseEncoder):  # as an encoder is before training
    def forward(self, x):
        return ModelOutput(embedding=torch.zeros(len(x), K), log_covariance=torch.zeros(len(x), K))


iwae = IWAE(IWAEConfig(input_dim=(D,), latent_dim=K, number_samples=100), Prior(), Decoder())
constant = D / 2 * torch.log(torch.tensor(2 * torch.pi)).item()
losses = torch.tensor([iwae({"data": data}).loss.item() + constant for _ in range(50)])
z = torch.randn(100, N, K)
log_w = -0.5 * ((data - z @ W.T) ** 2).sum(-1) - constant
bound = (torch.logsumexp(log_w, 0) - torch.log(torch.tensor(100.0))).mean().item()
print(f"-log p(x) {-exact:.3f}, minus the bound of 100 samples {-bound:.3f}, IWAE's loss {losses.mean().item():.3f}")
assert -bound > -exact - 0.02
assert losses.mean().item() < -exact - 0.5
PY
