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
# Nor is torch.randn(17) the beginning of torch.randn(128): if a size is no multiple of 16 the last 16 are drawn again, so
# one number agrees. A last batch that is smaller has other noise for some of its rows than a whole one.
#
# Seen: of the 200 numbers of a (2, 4, 5, 5) tensor none is among those in channels_last; of 16, 17, 32 and 100 numbers 16, 1,
# 32 and 84 are those that 128 begin with. The same with ATEN_CPU_CAPABILITY=avx2 and default.
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

many = noise(torch.randn, 128)
agree = {size: int((noise(torch.randn, size) == many[:size]).sum()) for size in (16, 17, 32, 100)}
print("as many of the first of 128 agree:", agree)
assert agree == {16: 16, 17: 1, 32: 32, 100: 84}
PY
