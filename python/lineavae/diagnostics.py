"""What is installed, what was built, and which operators run natively where."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass

import torch

from lineavae import _ext


@dataclass(frozen=True)
class Diagnosis:
    """The state of an installation; ``str()`` of it is one screen of text."""

    lineavae: str
    python: str
    platform: str
    torch: str
    torch_cuda: str | None
    devices: list[str]
    native_error: str | None
    build: dict[str, str]
    kernels: dict[str, dict[str, bool]]

    def to_dict(self) -> dict[str, object]:
        """Return plain Python objects, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"lineavae      {self.lineavae}",
            f"python        {self.python} on {self.platform}",
            f"torch         {self.torch}",
            f"torch's CUDA  {self.torch_cuda or 'none: this torch runs on the CPU only'}",
            f"devices       {', '.join(self.devices)}",
        ]
        if self.native_error is not None:
            return "\n".join([*lines, f"native module could not be loaded: {self.native_error}"])
        cuda = self.build["cuda"] or "none: built without nvcc, or with LINEAVAE_CUDA=OFF"
        lines += [
            f"built with    torch {self.build['torch']}, {self.build['compiler']}",
            f"built CUDA    {cuda}",
            f"architectures {self.build['cuda_architectures'] or 'none'}",
            "",
            f"{'operator':<38}{'CPU':<12}CUDA",
        ]
        word = {True: "native", False: "reference"}
        for op, kernels in self.kernels.items():
            lines.append(f"{op:<38}{word[kernels['cpu']]:<12}{word[kernels['cuda']]}")
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Describe this installation: versions, architectures, devices, and per operator where it runs natively.

    Never raises: where the native module cannot be loaded, ``native_error`` says why.

    Examples
    --------
    >>> import lineavae
    >>> lineavae.diagnose().native_error is None
    True
    """
    from lineavae import __version__

    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        devices.append(f"cuda:{index} {torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    native_error, build, kernels = None, {}, {}
    try:
        build = _ext.load().build_info()
        for op in _ext.ops():
            kernels[op] = {device: _ext.has_kernel(op, device) for device in ("cpu", "cuda")}
    except ImportError as error:
        native_error = str(error)
    return Diagnosis(
        lineavae=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        torch=torch.__version__,
        torch_cuda=torch.version.cuda,
        devices=devices,
        native_error=native_error,
        build=build,
        kernels=kernels,
    )
