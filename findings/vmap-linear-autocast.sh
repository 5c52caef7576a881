#!/bin/sh
# What vmap makes of a linear layer under autocast.
#
# torch 2.13.0, CPU.
#
# Under torch.autocast a linear layer gives bfloat16. Under vmap, which an ensemble of models by functional_call and
# stack_module_state uses, the same layer with the same autocast gives float32 if it has a bias, and bfloat16 if it has none:
# vmap has no rule for a linear layer with a bias of its own for each model and splits it into a product, which autocast makes
# bfloat16, and a sum with the float32 bias, which it leaves alone. So activations of an ensemble are float32 from the first
# layer on, twice as large as those of its models one by one, and values and memory differ from theirs.
#
# Seen: bfloat16 without vmap, float32 with vmap and bias, bfloat16 with vmap and no bias; two layers with biases, one model
# after the other: bfloat16, as an ensemble: float32.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0
"$folder/v/bin/python" - <<'PY'
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import linear

torch.manual_seed(0)
x, weight, bias = torch.randn(3, 4), torch.randn(2, 5, 4), torch.randn(2, 5)
models = [nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(2)]
parameters, _ = stack_module_state(models)
with torch.autocast("cpu", torch.bfloat16):
    found = {
        "plain": linear(x, weight[0], bias[0]).dtype,
        "vmap, bias": vmap(linear, (None, 0, 0))(x, weight, bias).dtype,
        "vmap, no bias": vmap(linear, (None, 0))(x, weight).dtype,
        "a model": models[0](x).dtype,
        "an ensemble": vmap(lambda p: functional_call(models[0], p, (x,)))(parameters).dtype,
    }
print("torch", torch.__version__, found)
half, single = torch.bfloat16, torch.float32
assert list(found.values()) == [half, single, half, half, single]
PY
