"""RUNTIMES: the programs that run networks, one module each."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from predictors.runtimes.executorch import ExecuTorchSession
from predictors.runtimes.onnxruntime import OnnxRuntimeSession
from predictors.runtimes.openvino import OpenVinoSession
from predictors.runtimes.session import OpenSession, Run, RunPart, load_session, open_parts
from predictors.runtimes.torch import load_torch, load_torch_compile


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A program that runs networks.

    Args:
        load: (source, *, threads, precision, batch, place) -> (run, the precision that the runtime itself reports).
        package: the distribution that the runtime is part of.
        extra: ours that installs it.
        precisions: those that a device may ask for; those of `formats` if left out.
        places: where it may compute.
        formats: {precision: the name of the export format whose files it loads}; empty for a runtime that takes modules
            of torch.
        modules: what loading a network imports; the package if left out.
        open: (source, the same keywords) -> (a function that runs the files on given inputs, the precision); None of a
            runtime that takes modules.
    """

    load: Callable[..., tuple[Run, str]]
    package: str
    extra: str | None = None
    precisions: tuple[str, ...] = ()
    places: tuple[str, ...] = ("cpu",)
    formats: Mapping[str, str] = dataclasses.field(default_factory=dict)
    modules: tuple[str, ...] = ()
    open: Callable[..., tuple[RunPart, str]] | None = None

    def __post_init__(self) -> None:
        if not self.precisions:
            object.__setattr__(self, "precisions", tuple(self.formats) or ("float32",))

    def version(self) -> str:
        """The installed version, without importing the runtime; ImportError says what to install."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            what = f"'supernet[{self.extra}]'" if self.extra else self.package
            raise ImportError(f"{self.package} is not installed: pip install {what}") from None


def of_files(session: OpenSession, *arguments: Any, **options: Any) -> Runtime:
    """The runtime of files that opens them with `session(path, threads=, precision=)`."""
    load, opened = (partial(function, session=session) for function in (load_session, open_parts))
    return Runtime(load, *arguments, **options, open=opened)


RUNTIMES = {
    "torch": Runtime(load_torch, "torch", places=("cpu", "cuda")),
    "torch-compile": Runtime(load_torch_compile, "torch", places=("cpu", "cuda")),
    "onnxruntime": of_files(
        OnnxRuntimeSession,
        "onnxruntime",
        formats={"float32": "onnx", "int8": "onnx-int8"},
        modules=("onnxruntime", "onnx"),
    ),
    "openvino": of_files(
        OpenVinoSession,
        "openvino",
        "openvino",
        formats={"float32": "onnx", "bfloat16": "onnx", "int8": "openvino-int8"},
    ),
    "executorch": of_files(
        ExecuTorchSession,
        "executorch",
        "executorch",
        formats={"float32": "executorch", "int8": "executorch-int8"},
        modules=("executorch.exir", "executorch.backends.xnnpack", "executorch.extension.pybindings.portable_lib"),
    ),
}
