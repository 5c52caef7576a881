#!/bin/sh
# Two metrics of the KL in one MetricCollection of torchmetrics.
#
# torchmetrics 1.9.0, torch 2.13.0; CPU.
#
# After the first update a MetricCollection compares the states of its metrics, and from then on those whose states have
# the same names and (nearly) the same values are one: only the first by name is updated, and the others take its state.
# Neither their classes nor their settings are asked. The mean KL and the mean KL with free bits have equal sums on a batch
# whose KLs are all above the free bits. When a batch with a collapsed latent follows, both report the one with free bits:
# a KL of 0.75 where it is 0.50. A weight β that is annealed from the value of another metric, a clamp, a mask: the same. No
# warning. compute_groups=False keeps them apart, and so does a state that holds the setting.
#
# Seen: 0.75 and 0.75, and 0.75 for a subclass too; by themselves, with compute_groups=False, and with the batches in the
# other order 0.50 and 0.75.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0 torchmetrics==1.9.0
"$folder/v/bin/python" -W error - <<'PY'
import torch
from torchmetrics import Metric, MetricCollection


class MeanKL(Metric):
    def __init__(self, free_bits=0.0):
        super().__init__()
        self.free_bits = free_bits
        self.add_state("total", torch.zeros(()), "sum")
        self.add_state("count", torch.zeros(()), "sum")

    def update(self, kl):
        self.total += kl.clamp(min=self.free_bits).sum()
        self.count += kl.numel()

    def compute(self):
        return self.total / self.count


class PlainKL(MeanKL):
    pass


alive, collapsed = torch.ones(10, 3), torch.zeros(10, 3)


def report(first, second, **settings):
    metrics = MetricCollection({"kl": MeanKL(), "free_bits": MeanKL(0.5), "plain_kl": PlainKL()}, **settings)
    metrics.update(first)
    metrics.update(second)
    return {name: round(value.item(), 4) for name, value in metrics.compute().items()}


wrong = report(alive, collapsed)
apart = report(alive, collapsed, compute_groups=False)
turned = report(collapsed, alive)
print("together", wrong)
print("compute_groups=False", apart)
print("batches in the other order", turned)
assert wrong == {"kl": 0.75, "free_bits": 0.75, "plain_kl": 0.75}
assert apart == turned == {"kl": 0.5, "free_bits": 0.75, "plain_kl": 0.5}
PY
