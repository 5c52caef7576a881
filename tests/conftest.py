import os

import pytest
import torch

from lineavae import _ext


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each device that the native module serves; with LINEAVAE_REQUIRE_CUDA=1 a missing CUDA is a failure."""
    if request.param == "cuda" and not (torch.cuda.is_available() and _ext.has_kernel("gaussian_kl", "cuda")):
        message = "no CUDA device, or a native module built without CUDA"
        if os.environ.get("LINEAVAE_REQUIRE_CUDA") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return request.param
