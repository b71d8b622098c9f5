"""Do exported files run in an old onnxruntime? It is installed into an environment of its own (pip needs an index).

    python benchmarks/old_onnxruntime.py --version 1.15.0

Writes tiny networks of both families as onnx and onnx-int8, of one batch size and of any, in the operator sets 17 and
18, and has the old onnxruntime compute what the new one computed. 1.15.0 (2023) is the oldest for Python 3.11. It ends
with exit status 1 where a file does not load, or its outputs differ by more than 1e-4 of the largest.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import hat
import ofa
from supernet.export import Request
from supernet.export.folder import write_export

RUN = """
import sys, numpy, onnxruntime
worst = 0.0
for file in sys.argv[1:]:
    known = dict(numpy.load(file + ".npz"))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feeds = {x.name: known["input " + x.name] for x in session.get_inputs()}
    found = session.run(None, feeds)
    for output, x in zip(session.get_outputs(), found):
        expected = known["output " + output.name].astype(float)
        difference = abs(x.astype(float) - expected).max() / abs(expected).max()
        worst = max(worst, difference)
        assert difference < 1e-4, (file, output.name, difference)
print(f"onnxruntime {onnxruntime.__version__}: {len(sys.argv) - 1} files run; largest difference {worst:.1e}")
"""
SIZES = {"batch": 2, "source": 5, "past": 3, "memory_0": 5, "memory_1": 5}


def networks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    space = ofa.mobilenet_v3_space(depth=[1], kernel_size=[3], expand_ratio=[3], resolution=[24])
    small = {"embed_dim": (32,), "ffn_embed_dim": (64,), "heads": (2,), "encoder_layer_num": (2,)}
    text = hat.transformer_space(**small, decoder_layer_num=(2,), arbitrary_ende_attn=(-1,), conv_kernel_size=(3,))
    return {
        "images": ofa.MobileNetV3(space, num_classes=3, width_mult=0.25, stem_stride=1).extract().eval(),
        "text": hat.Transformer(text, vocab_size=60, qkv_dim=32, max_positions=50).extract().eval(),
    }


def write_all(folder: Path) -> list[str]:
    """The files, each with a file .npz beside it: inputs, and what this environment's onnxruntime makes of them."""
    for name, network in networks().items():
        inputs = {"x": torch.randn(1, 3, 24, 24).numpy()} if name == "images" else None
        for opset in (17, 18):
            for batch in (1, "dynamic"):
                for format in ("onnx", "onnx-int8") if inputs else ("onnx",):
                    out = folder / f"{name}-{opset}-{batch}"
                    write_export(network, format, out, Request(batch, opset, {"subnet": [inputs]}))
    files = sorted(map(str, folder.rglob("*.onnx")))
    rng = np.random.default_rng(0)
    for file in files:
        session, known = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]), {}
        for x in session.get_inputs():
            shape = [size if isinstance(size, int) else SIZES[size] for size in x.shape]
            kinds = {"tensor(int64)": np.full(shape, 5), "tensor(bool)": np.zeros(shape, bool)}
            known[x.name] = kinds.get(x.type, rng.standard_normal(shape).astype(np.float32))
        outputs = zip(session.get_outputs(), session.run(None, known))
        made = {f"output {output.name}": value for output, value in outputs}
        np.savez(file + ".npz", **{f"input {name}": x for name, x in known.items()}, **made)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", default="1.15.0")
    version = parser.parse_args().version
    with tempfile.TemporaryDirectory() as folder:
        files = write_all(Path(folder) / "files")
        venv.create(home := Path(folder) / "environment", with_pip=True)
        python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", f"onnxruntime=={version}", "numpy<2"], check=True)
        raise SystemExit(subprocess.run([python, "-I", "-c", RUN, *files]).returncode)


if __name__ == "__main__":
    main()
