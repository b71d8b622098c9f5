"""A HAT subnet as a transformers model, in memory or as a folder that needs only transformers, and back.

Importing this module registers the model with transformers' Auto classes, so that folders load without remote code.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig

from hat.deploying import card_use, exported_as
from hat.layers import BOS, EOS, PAD, UNK
from hat.modeling_hat import HatConfig, HatForConditionalGeneration
from hat.transformer import Transformer, TransformerConfig
from hat.translation import GENERATION, bleu_metric, choose_tokenizer
from hat.translation import bleu as bleu
from hat.translation import chrf as chrf
from hat.translation import compare_bleu as compare_bleu
from hat.translation import compare_chrf as compare_chrf
from hat.translation import translate as translate
from supernet.atomic import write_folder
from supernet.export import Request
from supernet.metadata import CARD_FILES, Measured, write_card
from supernet.model import Supernet
from supernet.saving import build, describe

TOLERANCE = 1e-6  # largest difference over largest output
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_hat.py",
    "layers.py",
    *CARD_FILES,
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)


def register() -> None:
    """Make the model known to transformers: its Auto classes load it, and `save_pretrained` writes its code, too."""
    AutoConfig.register(HatConfig.model_type, HatConfig, exist_ok=True)
    AutoModelForSeq2SeqLM.register(HatConfig, HatForConditionalGeneration, exist_ok=True)
    HatConfig.register_for_auto_class()
    HatForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")


register()


def to_huggingface(subnet: Transformer) -> HatForConditionalGeneration:
    """A transformers model that computes what `subnet` computes, with its weights (copied), mode, device and dtype.

    Raises TypeError for another family, ValueError for a supernet that was not extracted, RuntimeError where the
    logits differ from the subnet's by more than 1e-6 of the largest.
    """
    config = configuration(subnet)
    weight = subnet.decoder.output.weight
    model = HatForConditionalGeneration(config).to(weight.device, weight.dtype)
    model.load_state_dict(subnet.state_dict())
    check(subnet, model)
    return model.train(subnet.training)


def save_huggingface(
    subnet: Transformer,
    folder: str | Path,
    tokenizer: Any = None,
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    measured: Measured | None = None,
) -> Path:
    """Write a folder that `AutoModelForSeq2SeqLM.from_pretrained` loads: config, weights, code, tokenizer, model card.

    `tokenizer` is a transformers tokenizer with the ids of the network, else ValueError. `generation` are fields of
    GenerationConfig, else ValueError, that stand beside or instead of the beam and the length penalty of the network's
    data (4 and 0.6 where it has none) and a max_length of all positions. README.md and metadata.json say how the folder
    is used, and what was `measured` of the network. The folder appears whole and checked, or not
    at all (see to_huggingface). An existing one raises FileExistsError, unless `overwrite` is set and it holds nothing
    but such an export. Returns `folder`.
    """
    folder, model = Path(folder), to_huggingface(subnet)
    if tokenizer is not None:
        check_tokenizer(tokenizer, model.config)
        trained = subnet.input_spec.get("tokenizer")
        if trained is not None and model_of(Tokenizer.from_str(trained)) != model_of(tokenizer.backend_tokenizer):
            raise ValueError(
                "tokenizer: it is not the one that this network was trained with: its ids mean other tokens"
            )
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = model.config.max_positions
        tokenizer.padding_side = "right"  # as labels have to be padded
    spec = {"num_beams": "beam", "length_penalty": "length_penalty"}
    chosen = {name: subnet.input_spec.get(key, GENERATION[name]) for name, key in spec.items()}
    generation = {"max_length": model.config.max_positions} | chosen | dict(generation or {})
    if unknown := generation.keys() - vars(GenerationConfig()).keys():
        raise ValueError(f"generation: {', '.join(sorted(unknown))} is not a field of a GenerationConfig")
    if (tokens := generation.get("max_new_tokens") or 0) > model.config.max_positions:
        raise ValueError(
            f"generation: max_new_tokens = {tokens}, the network has {model.config.max_positions} positions"
        )
    if generation.get("max_new_tokens") is not None:
        generation["max_length"] = None  # transformers takes one of the two, and warns of both
    if generation["num_beams"] == 1:
        generation["length_penalty"] = None  # transformers takes it for a mistake
    model.generation_config.update(**generation)
    model.generation_config.validate(strict=True)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        exported, use = exported_as(model.config, model.dtype), card_use(subnet, model, tokenizer is not None)
        write_card(temporary, subnet, exported, measured or Measured(), folder.name, use)
        check(subnet, HatForConditionalGeneration.from_pretrained(temporary))

    write_folder(folder, write, (*MODEL_FILES, *TOKENIZER_FILES), overwrite)
    return folder


def from_huggingface(model: HatForConditionalGeneration | str | Path) -> Transformer:
    """The subnet that a model, or its folder, was made of, with the model's weights, in eval mode.

    Raises ValueError, with the reason, where the model does not exist, or was not made from a subnet.
    """
    try:
        if not isinstance(model, HatForConditionalGeneration):
            if not Path(model, "config.json").is_file():
                raise ValueError(f"{model} has no config.json")
            model = HatForConditionalGeneration.from_pretrained(model)
        if not hasattr(model.config, "subnet"):
            raise ValueError("the config does not name its subnet")
        # transformers sorts what it writes; choices are in the order of the fields.
        choices = {
            field.name: model.config.subnet["space"][field.name] for field in dataclasses.fields(TransformerConfig)
        }
        subnet = build(model.config.subnet | {"space": choices})
        expected, found = configuration(subnet).to_dict(), model.config.to_dict()
        for name in inspect.signature(HatConfig.__init__).parameters:
            if name != "use_cache" and expected.get(name) != found.get(name):  # a Trainer switches the cache off
                raise ValueError(f"{name} is {found[name]}, the subnet's is {expected[name]}")
        subnet.to(model.device, model.dtype).load_state_dict(model.state_dict())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"no model that was made of a subnet: {type(error).__name__}: {error}") from error
    return subnet.eval()


def configuration(subnet: Transformer) -> HatConfig:
    """The config of the transformers model, with what makes our subnet again in its `subnet`."""
    if not isinstance(subnet, Transformer):
        raise TypeError(f"expected a hat.Transformer subnet, got {type(subnet).__name__}")
    if not subnet.extracted:
        raise ValueError("this is a supernet: give what its extract(config) returns")
    arguments, fields = subnet.arguments, dataclasses.asdict(subnet.config)
    for side, module in (("encoder", subnet.encoder), ("decoder", subnet.decoder)):
        if module.layers[0].self_attention.kernel_size is None:
            fields[f"{side}_conv_kernel_size"] = None
        fields[f"{side}_position_dim"] = module.embedding.positions.size(1)
        fields[f"{side}_dropout"] = module.embedding.dropout.p
    for name in ("vocab_size", "target_vocab_size", "qkv_dim", "head_dim", "normalize_before", "max_positions"):
        fields[name] = arguments[name]
    fields["tie_word_embeddings"] = arguments["share_embeddings"]
    fields["attention_dropout"] = arguments["attention_dropout"]
    description = describe(subnet)
    # Its tokenizer is in files of its own.
    description["input_spec"] = {k: v for k, v in description["input_spec"].items() if k != "tokenizer"}
    # Tuples as the lists that come back from the file.
    return HatConfig(**json.loads(json.dumps(fields)), subnet=json.loads(json.dumps(description)))


@torch.no_grad()
def check(subnet: Transformer, model: HatForConditionalGeneration) -> None:
    """Raise RuntimeError unless `model`, which is put in eval mode, computes what `subnet` does, within TOLERANCE."""
    device, training = subnet.decoder.output.weight.device, subnet.training
    source, previous = (x.to(device) for x in subnet.example_inputs(2))
    source[0, : source.size(1) // 3] = PAD
    try:
        expected = subnet.eval()(source, previous)
    finally:
        subnet.train(training)
    logits = model.to(device).eval()(source, decoder_input_ids=previous).logits
    difference, largest = (logits - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise RuntimeError(f"the model differs from the subnet by {difference:.3g}; logits reach {largest:.3g}")


def check_tokenizer(tokenizer: Any, config: HatConfig) -> None:
    """Raise ValueError where a tokenizer's ids are not the network's."""
    if config.target_vocab_size not in (None, config.vocab_size):
        raise ValueError(
            f"tokenizer: one of {len(tokenizer)} tokens for vocabularies of {config.vocab_size} and"
            f" {config.target_vocab_size}; save the network without it"
        )
    if len(tokenizer) != config.vocab_size:
        raise ValueError(f"tokenizer: it has {len(tokenizer)} tokens, the network {config.vocab_size}")
    for name, needed, expected in (("bos", False, BOS), ("pad", True, PAD), ("eos", True, EOS), ("unk", False, UNK)):
        found = getattr(tokenizer, f"{name}_token_id")
        if found != expected and (needed or found is not None):
            raise ValueError(f"tokenizer: its {name} token has the id {found}, the network's has {expected}")


def model_of(tokenizer: Tokenizer) -> Any:
    """What says which text each id is of."""
    return json.loads(tokenizer.to_str())["model"]


def export_huggingface(subnet: Transformer, folder: Path, request: Request) -> Path:
    """`save_huggingface` as an entry of the table of formats, with the tokenizer that the network was trained with."""
    from hat.data import read_tokenizer

    tokenizer = read_tokenizer(subnet.input_spec) if "tokenizer" in subnet.input_spec else None
    return save_huggingface(subnet, folder, tokenizer, overwrite=request.overwrite, measured=request.measured)


def check_translates(network: Supernet, folder: str, extracted: bool = False) -> None:
    """Raise ValueError where a folder's network does not translate, or is not `extracted` where it must be."""
    if not isinstance(network, Transformer) or (extracted and not network.extracted):
        kind = "a saved subnet of a translation supernet" if extracted else "a translation network"
        raise ValueError(f"{folder} is not {kind}, but a {type(network).__name__}: BLEU needs translations")


def score(
    networks: Sequence[Supernet], data: Any, split: str, search: Mapping[str, Any], tokenize: str | None
) -> dict[str, Any]:
    """BLEU and chrF of the first network's translations of a split, and how they differ from the second's, if given.

    `search` has the beam, the length penalty, and whether a search stops early. If `tokenize` is None, the target
    language decides.
    """
    sources, references = data.texts(split)
    tokenize = tokenize or choose_tokenizer(data.input_spec.get("target_language"), references)
    bleu_metric(tokenize)  # a missing package is reported before the work
    beam, length_penalty, early_stopping = search.values()
    options = {"num_beams": beam, "length_penalty": length_penalty, "early_stopping": early_stopping}
    ours, *others = [translate(to_huggingface(one), data.tokenizer, sources, **options) for one in networks]
    scores = bleu(ours, references, tokenize=tokenize) | chrf(ours, references) | dict(search)
    for theirs in others:
        scores |= compare_bleu(ours, theirs, references, tokenize=tokenize) | compare_chrf(ours, theirs, references)
    return scores
