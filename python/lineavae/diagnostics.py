"""What is installed, what was built, and which operators run natively where."""

from __future__ import annotations

import platform
import re
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
    problems: list[str]

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
        lines += ["", *self.problems] if self.problems else []
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Describe this installation: versions, architectures, devices, and per operator where it runs natively.

    Never raises: where the native module cannot be loaded, ``native_error`` says why, and ``problems`` say
    which devices cannot run the CUDA kernels that were built, for their architecture or their driver.

    Examples
    --------
    >>> import lineavae
    >>> lineavae.diagnose().native_error is None
    True
    """
    from lineavae import __version__

    capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    devices = ["cpu"]
    for index, (major, minor) in enumerate(capabilities):
        devices.append(f"cuda:{index} {torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    native_error, build, kernels, problems = None, {}, {}, []
    try:
        build = _ext.load().build_info()
        for op in _ext.ops():
            kernels[op] = {device: _ext.has_kernel(op, device) for device in ("cpu", "cuda")}
        if build["cuda"] and capabilities:
            problems = _problems(build["cuda"], build["cuda_architectures"].split(), capabilities)
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
        problems=problems,
    )


def _problems(nvcc: str, architectures: list[str], capabilities: list[tuple[int, int]]) -> list[str]:
    """Say what of this machine cannot run kernels that this nvcc made for these architectures."""
    if torch.version.hip is not None:
        return ["the CUDA kernels cannot run: this torch is for ROCm"]
    problems = []
    driver = torch._C._cuda_getDriverVersion() // 1000  # type: ignore[attr-defined]
    if driver < int(nvcc.partition(".")[0]):
        problems.append(
            f"the CUDA kernels cannot run: the driver is for CUDA {driver}, nvcc was {nvcc}. "
            "Update the driver, or build again: "
            f"CUDACXX=/usr/local/cuda-{torch.version.cuda}/bin/nvcc pip install ."
        )
    for index, (major, minor) in enumerate(capabilities):
        if not any(_serves(architecture, major, minor) for architecture in architectures):
            problems.append(
                f"the CUDA kernels cannot run on cuda:{index}: they were not built for sm_{major}{minor}. "
                f"Build again: CUDAARCHS={major}{minor} pip install ."
            )
    return problems


def _serves(architecture: str, major: int, minor: int) -> bool:
    """Whether kernels for an architecture, as CMake writes it, run on a device of this compute capability."""
    match = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
    if match is None:
        return True  # all of them: of a CMake that does not name them
    built, device = (int(match[1]), int(match[2])), (major, minor)
    if match[3] == "a":  # what this architecture alone has
        return built == device
    runs = match[4] != "-virtual" and built[0] == major and built[1] <= minor
    compiles = match[4] != "-real" and built <= device and match[3] == ""  # by the driver, when it is loaded
    return runs or compiles or (match[3] == "f" and built[0] == major and built[1] <= minor)
