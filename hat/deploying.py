"""How a translation network is used by someone who has only its exported files."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from hat import translate
from hat.layers import EOS, PAD, UNK
from supernet.metadata import Exported, Use

if TYPE_CHECKING:
    from hat.transformer import Transformer

SEARCH = {"beam": 4, "length_penalty": 0.6}  # HAT's for WMT, where the data say nothing


def translation_use(network: Transformer) -> Use:
    """The languages, the tokens and the search; translate.py and the tokenizer are written beside the files."""
    tokenizer = network.input_spec.get("tokenizer")
    files = {"translate.py": inspect.getsource(translate)} | ({"tokenizer.json": tokenizer} if tokenizer else {})

    def snippet(exported: Exported) -> str:
        if exported.runtime == "torch":
            return TORCH
        call = 'print(translator(["A sentence."]))'
        if tokenizer is None:
            call = f"print(translator.search([4, 5, {EOS}]))  # token ids; {EOS} is the end of a sentence"
        return f"""import sys

folder = "$folder"  # where this is
sys.path.insert(0, folder)
from translate import Translator

translator = Translator(folder)
{call}
"""

    packages = ("numpy", "tokenizers") if tokenizer else ("numpy",)
    return Use("translation", "Translation network", facts(network), snippet, packages, files, RUNNING)


TORCH = """from hat.data import read_tokenizer
from hat.huggingface import to_huggingface, translate
from supernet.export import load

network = load("$folder")  # where this is
print(translate(to_huggingface(network), read_tokenizer(network.input_spec), ["A sentence."]))
"""

RUNNING = """`translate.py` does beam search with the two files. The encoder runs once for each sentence: `source` is
its token ids with the end token, padded on either side. Its outputs are the decoder's inputs, repeated for each
hypothesis.
The decoder runs once for each token: `previous` is the last token of each hypothesis, at first the start token. An
output `new_X` of a step is the input `X` of the next, in the order of the hypotheses that go on; run.json has their
shapes before the first step."""


def facts(network: Transformer) -> dict[str, Any]:
    """What metadata.json says of a translation network."""
    spec, arguments = network.input_spec, network.arguments
    return {
        "languages": {"source": spec.get("source"), "target": spec.get("target")},
        "tokenizer": {"file": "tokenizer.json", "kind": "a byte-level BPE, as the package tokenizers reads it"}
        if spec.get("tokenizer")
        else None,
        "tokens": {"padding": PAD, "end": EOS, "start": EOS, "unknown": UNK, "vocabulary": arguments["vocab_size"]},
        "generation": {name: spec.get(name, value) for name, value in SEARCH.items()}
        | {"first_token": "not the end", "padding": "never generated"},
        "max_positions": arguments["max_positions"],
        "trained_on_at_most": spec.get("max_length"),
    }
