"""Translates with an exported network: beam search over its encoder and decoder files, in NumPy.

It needs numpy, tokenizers, and the runtime of the files: onnxruntime, openvino, or executorch with torch. It does not
need the package that wrote them.

    python translate.py "A sentence." "Another one."
"""

import json
import sys
from pathlib import Path

import numpy as np


class Translator:
    """The network of a folder that holds its files, run.json, metadata.json and tokenizer.json.

    Call it with a list of texts for their translations. `search` works on token ids.
    """

    def __init__(self, folder="."):
        folder = Path(folder)
        self.metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        self.plan = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.encoder, self.decoder = (open_part(folder, self.plan[part]) for part in ("first", "then"))
        self.tokenizer = None
        if (folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.tokenizer.encode_special_tokens = True  # a text that says </s> does not end there

    def __call__(self, texts, beam=None, length_penalty=None, max_length=None):
        """The translations of texts, each after at most `max_length` tokens: twice the longest text's, and 10 more."""
        if isinstance(texts, str):
            raise TypeError("texts is one string: give a list of them")
        if self.tokenizer is None:
            raise ValueError("the folder has no tokenizer.json: give token ids to `search`")
        sources = [encoding.ids or [self.ids["end"]] for encoding in self.tokenizer.encode_batch(list(texts))]
        if max_length is None:
            max_length = 2 * max(map(len, sources), default=0) + 10
        found = [self.search(source, beam, length_penalty, max_length) for source in sources]
        return self.tokenizer.decode_batch(found, skip_special_tokens=True)

    @property
    def ids(self):
        return self.metadata["tokens"]

    def search(self, source, beam=None, length_penalty=None, max_length=None):
        """The token ids of the best translation of a sentence, which is token ids with the end token.

        A hypothesis is scored by the sum of its tokens' log probabilities over its length to the power of
        `length_penalty`. The first token is not the end, and none is padding.
        """
        generation, positions = self.metadata["generation"], self.metadata["max_positions"]
        beam = beam or generation["beam"]
        penalty = generation["length_penalty"] if length_penalty is None else length_penalty
        longest = min(max_length or positions, positions)
        if len(source) > positions:
            raise ValueError(f"a sentence has {len(source)} tokens: this network has {positions} positions")
        state = self.start(source, beam)
        tokens, scores = np.zeros((beam, 0), np.int64), np.full(beam, -1e9)
        scores[0] = 0.0  # all hypotheses are the same before the first token
        finished = []
        for length in range(1, longest + 1):
            made = self.decoder(state)
            state |= {name.removeprefix("new_"): x for name, x in made.items() if name.startswith("new_")}
            gains = log_softmax(made["logits"])
            gains[:, self.ids["padding"]] = -np.inf
            if length == 1:
                gains[:, self.ids["end"]] = -np.inf
            totals = scores[:, None] + gains
            best = np.argsort(-totals, axis=None, kind="stable")[: 2 * beam]
            rows, chosen = np.unravel_index(best, totals.shape)
            best_scores = totals[rows, chosen]
            ends = (chosen == self.ids["end"]) | (length == longest)
            for i in np.flatnonzero(ends[:beam]):
                finished.append((best_scores[i] / length**penalty, [*tokens[rows[i]], chosen[i]]))
            finished = sorted(finished, key=lambda hypothesis: -hypothesis[0])[:beam]
            going = np.flatnonzero(~ends)[:beam]
            if not len(going) or (beam == 1 and finished):
                break
            rows, chosen, scores = rows[going], chosen[going], best_scores[going]
            if len(finished) == beam and scores[0] / length**penalty <= finished[-1][0]:
                break  # the best hypothesis, scored at its present length, is not better than the worst finished one
            tokens = np.concatenate([tokens[rows], chosen[:, None]], axis=1)
            caches = {name: state[name][rows] for name in self.plan["start"] if name != "previous"}
            state |= caches | {"previous": chosen[:, None]}
        return [int(token) for token in finished[0][1] if token != self.ids["end"]]

    def start(self, source, beam):
        """The decoder's inputs before the first token, for `beam` hypotheses of a sentence."""
        made = self.encoder({"source": np.array([source], np.int64)})
        state = {name: np.repeat(x, beam, axis=0) for name, x in made.items()}
        for name, (_, *shape) in self.plan["start"].items():
            state[name] = np.zeros((beam, *shape), np.float32)
        return state | {"previous": np.full((beam, 1), self.ids["start"], np.int64)}


def log_softmax(logits):
    """Log probabilities of logits (B, vocabulary), in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


# Each function opens a file, and returns a function of inputs by name that returns outputs by name. Inputs that the
# file does not have are left out.


def open_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs, outputs = [x.name for x in session.get_inputs()], [x.name for x in session.get_outputs()]
    return lambda feeds: dict(zip(outputs, session.run(outputs, {name: feeds[name] for name in inputs})))


def open_openvino(path):
    import openvino

    # OpenVINO would compute in bfloat16 or float16 where the processor has it.
    model = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs, outputs = [x.any_name for x in model.inputs], [x.any_name for x in model.outputs]

    def run(feeds):
        found = model({name: feeds[name] for name in inputs})
        return {name: found[i].copy() for i, name in enumerate(outputs)}

    return run


def open_executorch(path):
    """An ExecuTorch file is for one number of rows: fewer are filled up, and more raise ValueError."""
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(str(path))
    names = {of: list(program.load_method(of).execute([])) for of in ("input_names", "output_names")}
    method = program.load_method("forward")
    size = method.metadata.input_tensor_meta(0).sizes()[0]

    def filled(x):
        x = torch.from_numpy(np.ascontiguousarray(x[np.arange(size).clip(max=len(x) - 1)]))
        return x if x.numel() else torch.empty(x.shape, dtype=x.dtype)

    def run(feeds):
        rows = len(feeds[names["input_names"][0]])
        if rows > size:
            raise ValueError(f"{path} is for {size} hypotheses, not {rows}")
        found = method.execute([filled(feeds[name]) for name in names["input_names"]])
        return {name: x.numpy()[:rows].copy() for name, x in zip(names["output_names"], found)}

    return run


OPENERS = {".onnx": open_onnx, ".xml": open_openvino, ".pte": open_executorch}


def open_part(folder, name):
    """The function that runs a part of the network, `encoder` or `decoder`."""
    for suffix, opened in OPENERS.items():
        if (folder / f"{name}{suffix}").is_file():
            return opened(folder / f"{name}{suffix}")
    raise FileNotFoundError(f"{folder} has no {name} with one of the suffixes {', '.join(OPENERS)}")


if __name__ == "__main__":
    for translation in Translator(Path(__file__).parent)(sys.argv[1:] or ["A sentence."]):
        print(translation)
