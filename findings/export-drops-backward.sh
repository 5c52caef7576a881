#!/bin/sh
# torch.export and functions with a backward of their own.
#
# torch 2.13.0, CPU; 2.15.0 does the same.
#
# torch.export.export traces through an autograd.Function in its default mode, strict=False: the program holds what its
# forward calls, and nothing of its backward. The exported module trains, without a word, by another gradient: a reversed
# gradient (domain-adversarial and conditional VAEs) has the other sign, a straight-through estimator (VQ-VAEs) has none.
# torch.compile of the same modules is right. With strict=True the output does not require grad, which is an error at
# least.
#
# Seen: gradient of a reversal eager and compiled -1, exported 1; of a straight-through rounding 1, exported 0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0
"$folder/v/bin/python" - <<'PY'
import torch
from torch import nn


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z * 1

    @staticmethod
    def backward(ctx, grad):
        return -grad


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.function.apply(self.weight * x)


def gradient(module):
    module(torch.ones(1)).sum().backward()
    (parameter,) = module.parameters()
    return None if parameter.grad is None else parameter.grad.item()


print("torch", torch.__version__)
found = {}
for function in (Reverse, StraightThrough):
    exported = torch.export.export(Model(function), (torch.ones(1),)).module()
    found[function.__name__] = [
        gradient(Model(function)),
        gradient(torch.compile(Model(function), backend="aot_eager")),
        gradient(exported),
    ]
    print(function.__name__, dict(zip(("eager", "compiled", "exported"), found[function.__name__])))
assert found == {"Reverse": [-1, -1, 1], "StraightThrough": [1, 1, 0]}
PY
