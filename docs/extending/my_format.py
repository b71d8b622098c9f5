"""An export format: the archive of torch.export."""

import numpy as np
import torch

from supernet.atomic import write_atomically
from supernet.export import FORMATS, Format
from supernet.export.parts import check_outputs


def write_archive(part, path, request, feeds, properties) -> None:
    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = program.module()(*(torch.from_numpy(inputs[name]) for name in part.names))
        return {part.outputs[0]: outputs.detach().numpy()}

    def write(temporary) -> None:
        with temporary.open("wb") as file:
            torch.export.save(program, file)
        check_outputs(part, run, "torch.export")

    program = torch.export.export(part.module, part.inputs)
    write_atomically(path.with_suffix(".pt2"), write)


FORMATS["archive"] = Format("my_format:write_archive", "torch", suffix=".pt2", packages=("torch",), batches=("fixed",))
