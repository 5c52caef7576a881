#!/bin/sh
# Parameters of one element in load_state_dict.
#
# torch 2.13.0, CPU.
#
# A checkpoint with a tensor of shape (1,) loads into a parameter of shape (), strictly and without a word (a
# kindness to files of torch 0.3). The other way round raises. So a model whose learned σ² goes from (1,), which
# fully_shard needs, back to () reads its old checkpoints, and one that goes from () to (1,) refuses them. (1, 1)
# into () raises as well.
#
# Seen: (1,) into () loads; () into (1,) and (1, 1) into () raise "size mismatch".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0
"$folder/v/bin/python" -W error - <<'PY'
import torch
from torch import nn


def loads(saved, own):
    module = nn.Module()
    module.log_sigma2 = nn.Parameter(torch.zeros(own))
    try:
        module.load_state_dict({"log_sigma2": torch.ones(saved)}, strict=True)
    except RuntimeError as error:
        assert "size mismatch" in str(error)
        return False
    assert module.log_sigma2.shape == own and (module.log_sigma2 == 1).all()
    return True


print("torch", torch.__version__)
found = {(saved, own): loads(saved, own) for saved, own in (((1,), ()), ((), (1,)), ((1, 1), ()))}
print({f"{saved} into {own}": "loads" if answer else "raises" for (saved, own), answer in found.items()})
assert list(found.values()) == [True, False, False]
PY
