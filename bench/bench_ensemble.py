"""Training eight of the quick preset's VAEs as one ensemble, and one after another with the same threads.

784-256-128-200-128-256-784, batches of 100, σ² fixed, fused Adam. A call is one epoch of 2000 images, and the
part of an evaluation that falls on it: there is one in 20 epochs.
"""

import torch

from harness.measure import Contender
from lineavae.experiments import EXPERIMENTS
from lineavae.experiments.deep_vae import DeepData, evaluate, make_vae
from lineavae.nn import Ensemble

CONFIG = EXPERIMENTS["deep-mnist"].presets["quick"]
NUM_MODELS = 8


def trainer(models, data):
    """Make a function of data that trains for an epoch all models at once, each an ensemble or a VAE."""
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3, fused=True) for model in models]
    share = DeepData(data.x[: max(1, len(data.x) // CONFIG.record_every)], *data[1:])

    def train(x):
        for model, optimizer in zip(models, optimizers, strict=True):
            for batch in x.split(CONFIG.batch_size):
                optimizer.zero_grad()
                loss = -model(batch, seed=torch.tensor(0, device=x.device)).elbo.mean(-1).sum()
                loss.backward()
                optimizer.step()
            for vae in model.to_models() if isinstance(model, Ensemble) else [model]:
                evaluate(vae, share, seed=0)
        return loss.detach()

    return train


def test_ensemble(compare, setting):
    x = torch.rand(setting.size(CONFIG.num_images), 784).to(setting.device)
    data = DeepData(x, torch.zeros(784), 1.0, 0.0)
    vaes = [
        make_vae(CONFIG, data, sigma2, "fixed", seed=0).to(setting.device)
        for sigma2 in torch.logspace(-2, 1, NUM_MODELS).tolist()
    ]
    compare(
        {
            "ours": Contender(trainer([Ensemble(vaes)], data), [x], captures=False),
            "one after another": Contender(trainer(vaes, data), [x], captures=False),
        }
    )
