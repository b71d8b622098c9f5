"""What transformers' `generate` costs: a translation over the network's bare steps.

    python benchmarks/decoding.py [--model FOLDER]

One sentence of 30 tokens, 30 steps of 5 hypotheses, on one thread. `generate` is beam search of the exported model;
the bare steps are the encoder once and the decoder 30 times with caches, choosing and reordering nothing. The network
is the largest of HAT's space 0 with random weights, or that of a folder. CPU milliseconds, medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

import hat
from hat.decoding import Translation
from hat.huggingface import from_huggingface, to_huggingface

BEAM, LENGTH, WARM_UP = 5, 30, 2


def milliseconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder that save_huggingface wrote")
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.model is None:
        subnet = hat.Transformer(vocab_size=4008).eval().extract()
    else:
        subnet = from_huggingface(arguments.model)
    model = to_huggingface(subnet)
    source = torch.randint(4, model.config.vocab_size, (1, LENGTH))
    bare = Translation(subnet.encoder, subnet.decoder, LENGTH, BEAM)

    def generate() -> torch.Tensor:
        return model.generate(source, num_beams=BEAM, min_new_tokens=LENGTH, max_new_tokens=LENGTH, max_length=None)

    if generate().size(1) != LENGTH + 1:
        raise RuntimeError(f"generate made {generate().size(1) - 1} tokens, not {LENGTH}")
    generated, steps = [], []
    for _ in range(WARM_UP + arguments.runs):
        generated.append(milliseconds(generate))
        steps.append(milliseconds(lambda: bare(source)))
    generated, steps = generated[WARM_UP:], steps[WARM_UP:]
    ratio = median(a / b for a, b in zip(generated, steps))
    overhead = median(a - b for a, b in zip(generated, steps))
    print(
        f"generate {median(generated):.1f} ms, bare steps {median(steps):.1f} ms, ratio {ratio:.3f},"
        f" overhead {overhead:.1f} ms a sentence"
    )


if __name__ == "__main__":
    main()
