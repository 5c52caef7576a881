"""What the machine can do at best: a large copy for its memory, a large matrix product for its arithmetic."""

import torch

from harness.measure import Contender


def test_copy(compare, setting):
    source = torch.rand(setting.size(1 << 27), device=setting.device)  # 512 MB, beyond every cache
    target = torch.empty_like(source)
    compare(
        {
            "copy": Contender(
                lambda source, target: target.copy_(source), [source, target], bytes=2 * source.nbytes
            )
        }
    )


def test_matrix_product(compare, setting):
    size = setting.size(8192 if setting.device == "cuda" else 2048)
    factors = [torch.rand(size, size, device=setting.device) for _ in range(2)]
    compare({"matrix product": Contender(torch.matmul, factors, flops=2 * size**3)})
