"""How a translation network is used by someone who has only its exported files."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from hat import translate
from hat.layers import EOS, PAD, UNK
from supernet.metadata import Exported, Use

if TYPE_CHECKING:
    import torch

    from hat.modeling_hat import HatConfig, HatForConditionalGeneration
    from supernet.model import Supernet

SEARCH = {"beam": 4, "length_penalty": 0.6}  # HAT's for WMT, where the data say nothing


def translation_use(network: Supernet) -> Use:
    """The languages, the tokens and the search; translate.py and the tokenizer are written beside the files."""
    tokenizer = network.input_spec.get("tokenizer")
    files = {"translate.py": inspect.getsource(translate)} | ({"tokenizer.json": tokenizer} if tokenizer else {})

    def snippet(exported: Exported) -> str:
        if exported.runtime == "torch":
            return TORCH if tokenizer else TORCH_IDS
        call = 'print(translator(["A sentence."]))'
        if tokenizer is None:
            call = f"print(translator.search([4, 5, {EOS}]))  # token ids; {EOS} is the end of a sentence"
        return f"""import sys

folder = "$folder"  # the path of this folder
sys.path.insert(0, folder)
from translate import Translator

translator = Translator(folder)
{call}
"""

    packages = ("numpy", "tokenizers") if tokenizer else ("numpy",)
    languages = tuple(language for language in languages_of(network).values() if language)
    return Use("translation", "Translation network", facts(network), snippet, packages, files, RUNNING, languages)


def languages_of(network: Supernet) -> dict[str, str | None]:
    """The source and the target language: their codes where the data know them, else as the data call them."""
    spec = network.input_spec
    return {side: spec.get(f"{side}_language") or spec.get(side) for side in ("source", "target")}


TORCH = """from hat.data import read_tokenizer
from hat.huggingface import to_huggingface
from hat.translation import translate
from supernet.export import load

network = load("$folder")  # the path of this folder
print(translate(to_huggingface(network), read_tokenizer(network.input_spec), ["A sentence."]))
"""

TORCH_IDS = f"""import torch
from hat.huggingface import to_huggingface
from supernet.export import load

network = load("$folder")  # the path of this folder
print(to_huggingface(network).generate(torch.tensor([[4, 5, {EOS}]])))  # token ids; {EOS} is the end of a sentence
"""

RUNNING = """`translate.py` does beam search with the two files. A translation ends after at most twice as many tokens
as the longest of the texts has, and 10 more; `max_length` sets another limit.

The encoder runs once for each sentence. Its input `source` has the sentence's token ids and the end token; shorter
sentences of a batch are padded, on the left or on the right. The decoder takes the encoder's outputs, repeated for
each hypothesis. It runs once for each token. Its input `previous` has the last token of each hypothesis; at the first
step this is the start token. Its output `new_X` is its input `X` at the next step, with the rows of the hypotheses
that were kept. run.json states the shapes of these inputs before the first step."""


def facts(network: Supernet) -> dict[str, Any]:
    """What metadata.json says of a translation network."""
    spec, arguments = network.input_spec, network.arguments
    return {
        "languages": languages_of(network),
        "tokenizer": {"file": "tokenizer.json", "kind": "a byte-level BPE, as the package tokenizers reads it"}
        if spec.get("tokenizer")
        else None,
        "tokens": {"padding": PAD, "end": EOS, "start": EOS, "unknown": UNK, "vocabulary": arguments["vocab_size"]},
        "generation": {name: spec.get(name, value) for name, value in SEARCH.items()}
        | {"first_token": "not the end", "padding": "never generated"},
        "max_positions": arguments["max_positions"],
        "trained_on_at_most": spec.get("max_length"),
    }


# ------------------------------------------------ as a transformers model


def card_use(subnet: Supernet, model: HatForConditionalGeneration, tokenizer: bool) -> Use:
    """How the folder is used, for its README.md and metadata.json."""
    config, generation = model.config, model.generation_config
    load = "AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)"
    if tokenizer:
        example = f"""from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "$folder"  # the path of this folder
model = {load}
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(["A sentence."], padding=True, return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))"""
    else:
        example = f"""import torch
from transformers import AutoModelForSeq2SeqLM

folder = "$folder"  # the path of this folder
model = {load}
source = torch.tensor([[4, 5, {EOS}]])  # token ids: {PAD} is padding, {EOS} the end and {UNK} an unknown word
print(model.generate(source))"""
    notes = f"""Encoder: width {config.encoder_embed_dim}, depth {config.encoder_layer_num}. Decoder: width
{config.decoder_embed_dim}, depth {config.decoder_layer_num}. A sentence has at most {config.max_positions} tokens; a
longer one is an error. Sources are padded on the left or on the right, targets on the right. The network is of the HAT
family (Hardware-Aware Transformers, arXiv 2005.14187). Its code is `modeling_hat.py` and `layers.py` in this folder.
Use `generate`: transformers 5 has no pipeline for translation. Where the project `supernet` is installed, its module
`hat.huggingface` registers the model: after `import hat.huggingface`, no `trust_remote_code` is needed."""
    use = subnet.use()
    chosen = {"beam": generation.num_beams, "length_penalty": generation.length_penalty}
    chosen |= {name: getattr(generation, name) for name in ("max_length", "max_new_tokens")}
    facts = dict(use.facts) | {"generation": {name: value for name, value in chosen.items() if value is not None}}
    return dataclasses.replace(use, facts=facts, snippet=lambda _: example, packages=(), files={}, notes=notes)


def exported_as(config: HatConfig, dtype: torch.dtype) -> Exported:
    """The description of the folder's network."""
    axes = {"input_ids": "input_ids", "attention_mask": "input_ids", "decoder_input_ids": "decoder_input_ids"}
    tokens = {name: {"shape": ["batch", axis], "dtype": "int64"} for name, axis in axes.items()}
    size, precision = config.target_vocab_size or config.vocab_size, str(dtype).removeprefix("torch.")
    logits = {"logits": {"shape": ["batch", "decoder_input_ids", size], "dtype": precision}}
    file = "model.safetensors"
    programs = ("transformers", "safetensors", "tokenizers")
    return Exported(
        "huggingface", "transformers", precision, (file,), {file: tokens}, {file: logits}, programs=programs
    )
