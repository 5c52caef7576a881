import os
import resource
import signal

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


@pytest.fixture
def full_disk():
    """No file grows beyond 5000 bytes, as on a disk that is full there."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
