"""The only file that loads the native module ``_C`` and knows what it holds."""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType

import torch  # libtorch must be in the process before the module that links against it


@cache
def load() -> ModuleType:
    """Load the module that registers the operators under ``torch.ops.lineavae``.

    It is ``lineavae._C``. Tests name another in the environment variable ``LINEAVAE_NATIVE``: one whose CUDA
    kernels are emulated on the CPU.
    """
    try:
        return importlib.import_module(os.environ.get("LINEAVAE_NATIVE", "lineavae._C"))
    except ImportError as error:
        raise ImportError(
            f"lineavae's native module could not be loaded into torch {torch.__version__}: {error}. "
            "Install it again from its source folder, `pip install --force-reinstall --no-deps .`; "
            "`python -m lineavae diagnose` prints what is installed."
        ) from error


@cache
def has_kernel(op: str, device_type: str) -> bool:
    """Whether the native module has a kernel of ``torch.ops.lineavae.<op>`` for this type of device."""
    load()
    if device_type == "cuda" and torch.version.hip is not None:
        return False  # ROCm's torch calls its devices so, and cannot run what nvcc made
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"lineavae::{op}", key)


def ops() -> list[str]:
    """Name the operators of the native module, all of which have a kernel for the CPU; gradients left out."""
    load()
    names = (name.partition("lineavae::")[2] for name in torch._C._dispatch_get_all_op_names())
    return sorted(op for op in names if op and not op.endswith("_backward") and has_kernel(op, "cpu"))
