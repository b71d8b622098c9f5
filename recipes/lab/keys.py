"""Identities: of networks, weights, data and code. Equal identities may share what was measured."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from predictors.store import digest, network_id
from supernet.model import Supernet

LENGTHS = ("source_length", "target_length", "beam")  # of an input_spec: what one timed inference is
TIMING = (*LENGTHS, "length_penalty")  # of an input_spec: they change no metric
NAMES = ("dataset", "license", "class_names", "source_language", "target_language")  # nor do these


def network_key(
    supernet: Supernet, config: Any, kind: str = "", written_by: Sequence[str] = (), timed: bool = True
) -> str:
    """The identity of a network, without its weights.

    `kind` is `PROXY` or `RELEASE` for a file of the network, with the programs that it is `written_by`; "" for the
    network itself. What is `timed` of a network, such as the length of a sentence, is part of the identity of a
    latency, but not of a metric.
    """
    terms = supernet.cost_terms  # its fields shape a network, beside the config
    left_out = ("space",) if timed else ("space", *TIMING)
    arguments = {f.name: getattr(terms, f.name) for f in dataclasses.fields(terms) if f.name not in left_out}
    exporter = [kind, *written_by, *supernet.files_form] if kind else ""
    return network_id(type(supernet).__name__, arguments | {"exporter": exporter}, config)


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tuple(tensor.shape)}".encode())
        state.update(tensor_bytes(tensor))
    return state.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor's items in C order, whatever its strides, dtype (also bfloat16) and number of items."""
    # `contiguous` keeps the stride of a single item, which `view` refuses; a contiguous clone has strides of its own.
    items = tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return items.flatten().view(torch.uint8).numpy().tobytes()


def batch_digests(batches: Iterable[Sequence[Tensor]]) -> list[str]:
    """The digest of each batch."""
    return [state_digest({str(i): x for i, x in enumerate(batch)}) for batch in batches]


def data_digest(data: Any, batches: Iterable[Sequence[Tensor]], calibration: Sequence[str] | None = None) -> str:
    """The identity of the data of a metric: these batches and the batches that calibrate.

    `calibration` are the digests of the latter, if they are known.
    """
    calibration = batch_digests(data.calibration_batches()) if calibration is None else calibration
    spec = {name: value for name, value in data.input_spec.items() if name not in (*TIMING, *NAMES)}
    return digest([[batch_digests(batches), calibration], spec])


def code_id(supernet: Supernet) -> str:
    """The identity of the code that writes the files of a supernet's networks."""
    modules = {*family_modules(supernet), "supernet.elastic", "supernet.model", "supernet.saving"}
    modules |= {name for name in sys.modules if name.startswith("supernet.export")}
    return digest(code_digests(sorted(modules | {"recipes.lab.files"})))


def family_modules(supernet: Supernet) -> set[str]:
    """The imported modules of the package that a supernet's family is in."""
    package = type(supernet).__module__.partition(".")[0]
    return {name for name in sys.modules if name.partition(".")[0] == package}


def code_digests(modules: Iterable[str]) -> list[str]:
    """sha256 of the files of imported modules; a module without a file, as in an interpreter's session, has none."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in modules]
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files if file]
