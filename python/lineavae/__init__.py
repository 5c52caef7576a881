"""Linear VAEs and posterior collapse: exact, fused C++/CUDA operators for PyTorch.

* `lineavae.ops`: loss terms as differentiable functions (KL, analytic ELBOs).
* `lineavae.linear`: sufficient statistics, probabilistic PCA and the linear VAE.
* `lineavae.nn`: deep VAEs with a Gaussian decoder, built on these terms.
* `lineavae.collapse`: which latents of a VAE are collapsed, and how certain that is.
* `lineavae.data`: MNIST, folders of images, arrays in files.
* `lineavae.experiments`: the paper's figures, one module each.
* `lineavae.report`: finished runs and collapse reports as one page.

All log-densities are in nats, per sample, with every constant. An ELBO is a quantity to maximise.

Imported after torch, it registers the operators and what models return, so that programs saved by
`torch.export` load.
"""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # not typing's: importing that takes as long as all the rest of this

if TYPE_CHECKING:
    from lineavae import collapse, data, experiments, linear, nn, ops, report
    from lineavae.diagnostics import diagnose

__version__ = "0.1.0"

__all__ = ["__version__", "collapse", "data", "diagnose", "experiments", "linear", "nn", "ops", "report"]


def __getattr__(name: str) -> object:
    # imported when first asked for, so that `diagnose` works where the native module does not load, and torch
    # is not loaded before the command line needs it
    if name == "diagnose":
        return importlib.import_module("lineavae.diagnostics").diagnose
    if name in __all__:
        return importlib.import_module(f"lineavae.{name}")
    raise AttributeError(f"module 'lineavae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "torch" in sys.modules:
    from contextlib import suppress

    with suppress(ImportError):  # of the native module, which `diagnose` tells about
        importlib.import_module("lineavae.nn")
