#!/bin/sh
# Which noise torch.randn_like draws after the same seed.
#
# torch 2.13.0, CPU.
#
# A mean in channels_last, or one that was transposed, keeps its strides in randn_like, and one would expect the numbers of
# the contiguous one, in the order of memory at worst. They are others: contiguous tensors of at least 16 numbers are filled by
# one algorithm, all else by another. So an encoder's memory_format decides the sample, and results do not repeat when it
# is changed for speed. torch.randn(shape) is as the contiguous one.
#
# Nor is torch.randn(40) the beginning of torch.randn(45): if the size is no multiple of 16 the last 16 are drawn again, and
# of the 40 the first 29 agree at most. So a last batch that is smaller has other noise for the same rows.
#
# Seen: of the 200 numbers of a (2, 4, 5, 5) tensor none is among those in channels_last; of 40 numbers 30 are those of 45.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet torch==2.13.0 numpy==2.4.0
"$folder/v/bin/python" -W error - <<'PY'
import torch


def noise(draw, *arguments):
    torch.manual_seed(1)
    return draw(*arguments)


mean = torch.zeros(2, 4, 5, 5)
last = mean.to(memory_format=torch.channels_last)
contiguous, channels_last = noise(torch.randn_like, mean), noise(torch.randn_like, last)
common = int(torch.isin(channels_last, contiguous).sum())
print(f"channels_last: {common} of {mean.numel()} numbers in common")
assert channels_last.stride() == last.stride() and common == 0
assert torch.equal(contiguous, noise(torch.randn, mean.shape))

transposed = torch.zeros(6, 8).T
assert not torch.isin(noise(torch.randn_like, transposed), noise(torch.randn_like, torch.zeros(8, 6))).any()

agree = int((noise(torch.randn, 40) == noise(torch.randn, 45)[:40]).sum())
print(f"40 and 45 numbers: {agree} of the first 40 agree")
assert agree == 30
assert torch.equal(noise(torch.randn, 32), noise(torch.randn, 48)[:32])
PY
