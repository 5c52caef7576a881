"""Train a VAE on 5000 MNIST digits and watch its latents collapse, or not: try --sigma2 10 --fixed.

pip install '.[experiments]'
python examples/train_vae.py
"""

import argparse

import torch
from torch.utils.data import DataLoader, TensorDataset

from lineavae.collapse import CollapseMonitor, CollapseStatistics
from lineavae.data import load_mnist5k
from lineavae.nn import GaussianVAE, KLAnnealing, MLPDecoder, MLPEncoder, ObservationNoise

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--epochs", type=int, default=50)
parser.add_argument("--latent-dim", type=int, default=50)
parser.add_argument("--sigma2", type=float, default=0.1, help="observation noise at the beginning")
parser.add_argument("--fixed", action="store_true", help="keep it; it is learned otherwise")
parser.add_argument(
    "--annealing", type=int, default=0, help="epochs in which the KL's weight goes from 0 to 1"
)
parser.add_argument("--num-images", type=int, default=5000)
args = parser.parse_args()

torch.manual_seed(0)
images = load_mnist5k().subset(args.num_images, seed=0).to_tensor()  # (N, 784), in [0, 1]
loader = DataLoader(TensorDataset(images), batch_size=128, shuffle=True, drop_last=True)

noise = ObservationNoise(args.sigma2, kind="fixed" if args.fixed else "learned")
encoder = MLPEncoder(num_features=784, latent_dim=args.latent_dim, hidden=(512, 256))
decoder = MLPDecoder(latent_dim=args.latent_dim, num_features=784, hidden=(256, 512))
vae = GaussianVAE(encoder, decoder, noise)
optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
annealing = KLAnnealing(args.annealing)

monitor = CollapseMonitor()
with monitor.watch(vae.encoder):
    for epoch in range(args.epochs):
        elbo = 0.0
        for (x,) in loader:
            terms = vae(x, beta=annealing(epoch))
            optimizer.zero_grad()
            (-terms.elbo.mean()).backward()
            optimizer.step()
            elbo += terms.elbo.mean().item() / len(loader)
        numbers = monitor.check().scalars()
        print(
            f"epoch {epoch + 1:3}   ELBO {elbo:8.2f} nats   σ² {terms.log_sigma2.exp():.4f}   "
            f"KL {numbers['collapse/mean_kl']:6.2f}   active {numbers['collapse/active_units']:.0f}   "
            f"collapsed {numbers['collapse/collapsed_percent']:.0f} %"
        )

vae.eval()
tuned = vae.sigma2_tuned_elbo(DataLoader(images, batch_size=1000), seed=0)
print(f"\nσ²-tuned ELBO {tuned.elbo:.2f} nats with σ² = {tuned.sigma2:.4f}\n")
statistics = CollapseStatistics(args.latent_dim)
with torch.no_grad():
    statistics.update(*vae.encode(images))
print(statistics.compute())
