"""A HAT subnet as a transformers model, in memory and as a folder."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache, PreTrainedTokenizerFast

import hat
import hat.huggingface
from hat.huggingface import from_huggingface, save_huggingface, to_huggingface
from hat.layers import EOS, PAD
from hat.modeling_hat import CACHE, HatForConditionalGeneration
from hat.translation import bleu, compare_bleu, translate
from supernet.distillation import label_loss

VOCABULARY = 60
OURS = ("hat", "ofa", "supernet", "predictors", "recipes")
PRIMER = {"relu_power": (1, 2), "conv_kernel_size": (1, 3)}
TEXTS = ["w5 w6 w7", "w8", "w9 w10 w11 w12 w13 w14 w15", "w16 nonsense", "w20 w21 w22 w23"]

LOAD = f"""
import json, sys
sys.modules.update(dict.fromkeys({OURS}))  # they cannot be imported
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

torch.set_num_threads(1)
results = {{}}
for folder in sys.argv[1:]:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    inputs = tokenizer({TEXTS}, padding=True, return_tensors="pt")
    results[folder] = {{
        "module": type(model).__module__,
        "training": model.training,
        "tokens": [model.generate(**inputs, num_beams=4, use_cache=cache).tolist() for cache in (True, False)],
        "tied": model.decoder.output.weight is model.decoder.embedding.tokens.weight,
    }}
print(json.dumps(results))
"""


def random_subnet(
    seed: int = 0, widths: tuple[int, int] | None = None, choices: dict | None = None, **arguments
) -> hat.Transformer:
    """A random subnet with random weights; of these widths, where given."""
    space = hat.transformer_space(
        embed_dim=(32, 48),
        ffn_embed_dim=(32, 64),
        heads=(2, 4),
        encoder_layer_num=(3, 4),
        decoder_layer_num=(2, 3),
        **choices or {},
    )
    config = space.decode(space.sample(1, np.random.default_rng(seed)))[0]
    if widths is not None:
        config = dataclasses.replace(config, encoder_embed_dim=widths[0], decoder_embed_dim=widths[1])
    torch.manual_seed(seed)
    supernet = hat.Transformer(space, **{"vocab_size": VOCABULARY, "qkv_dim": 64, "max_positions": 40} | arguments)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return supernet.extract(config).eval()


def convolved_subnet(seed: int = 0, **arguments) -> hat.Transformer:
    return random_subnet(seed, choices=PRIMER | {"decoder_conv_kernel_size": (3,)}, **arguments)


def batch(subnet: hat.Transformer, length: int = 9, targets: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Three sources, of which one is padded on the left and one on the right, and three targets."""
    generator = torch.Generator().manual_seed(1)
    target_size = subnet.arguments["target_vocab_size"] or VOCABULARY
    source = torch.randint(4, VOCABULARY, (3, length), generator=generator)
    source[0, :4], source[1, -3:] = PAD, PAD
    return source, torch.randint(4, target_size, (3, targets), generator=generator)


def word_tokenizer(size: int = VOCABULARY, pad: int = PAD) -> PreTrainedTokenizerFast:
    """Words w4, w5, ...; a sentence ends in </s>."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    specials[PAD], specials[pad] = specials[pad], specials[PAD]
    words = {word: i for i, word in enumerate([*specials, *(f"w{i}" for i in range(4, size))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", words["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def new_cache() -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def without_padding(sentences: torch.Tensor) -> list[list[int]]:
    return [[token for token in sentence if token != PAD] for sentence in sentences.tolist()]


def assert_same(a: torch.Tensor, b: torch.Tensor, exactly: bool) -> None:
    """Equal outputs; with convolutions up to rounding, since some CPUs sum them in an order that memory decides."""
    torch.testing.assert_close(a, b, rtol=0 if exactly else 1e-5, atol=0 if exactly else 2e-5)


# ---- in memory


@pytest.mark.parametrize(
    ("head_dim", "normalize_before", "share_embeddings", "widths", "choices"),
    list(itertools.product((None, 16), (False, True), (True, False), ((48, 48), (32, 48)), ({}, PRIMER))),
)
@torch.no_grad()
def test_logits_equal_the_subnets(head_dim, normalize_before, share_embeddings, widths, choices) -> None:
    subnet = random_subnet(
        widths=widths,
        choices=choices,
        head_dim=head_dim,
        normalize_before=normalize_before,
        share_embeddings=share_embeddings,
        target_vocab_size=None if share_embeddings else 50,
    )
    source, previous = batch(subnet)
    model = to_huggingface(subnet)
    assert_same(model(source, decoder_input_ids=previous).logits, subnet(source, previous), exactly=not choices)
    assert model.num_parameters() == sum(parameter.numel() for parameter in subnet.parameters())


def test_training_equals_the_subnets() -> None:
    subnet = convolved_subnet(widths=(32, 48), dropout=0.4).train()
    source, previous = batch(subnet)
    model = to_huggingface(subnet)
    outputs = []
    for network in (subnet, model):
        torch.manual_seed(0)
        outputs.append(network(source, previous) if network is subnet else network(source, None, previous).logits)
    assert model.training
    assert_same(*outputs, exactly=False)


def test_state_dict_is_the_subnets() -> None:
    subnet = convolved_subnet()
    ours, theirs = subnet.state_dict(), to_huggingface(subnet).state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_model_shares_no_storage() -> None:
    subnet = random_subnet()
    pointers = {tensor.data_ptr() for tensor in (*subnet.state_dict().values(), *subnet.buffers())}
    model = to_huggingface(subnet)
    assert not pointers & {tensor.data_ptr() for tensor in (*model.state_dict().values(), *model.buffers())}


def test_loss_is_ours() -> None:
    subnet = random_subnet()
    source, labels = batch(subnet)
    labels[0, -3:] = -100
    model = to_huggingface(subnet)
    output = model(source, labels=labels)
    previous = torch.full_like(labels, EOS)
    previous[:, 1:] = labels[:, :-1].where(labels[:, :-1] >= 0, torch.tensor(PAD))
    assert torch.equal(output.loss, label_loss(subnet(source, previous), labels))
    assert torch.equal(model.prepare_decoder_input_ids_from_labels(labels), previous)


def test_gradients_are_the_subnets() -> None:
    subnet = convolved_subnet()
    source, labels = batch(subnet)
    model = to_huggingface(subnet)
    model(source, labels=labels).loss.backward()
    label_loss(subnet(source, model.prepare_decoder_input_ids_from_labels(labels)), labels).backward()
    ours, theirs = dict(subnet.named_parameters()), dict(model.named_parameters())
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name].grad, theirs[name].grad) for name in ours)


# ---- padding and masks


@torch.no_grad()
def test_padding_on_either_side_changes_nothing() -> None:
    model = to_huggingface(convolved_subnet())
    sentence, previous = torch.randint(4, VOCABULARY, (1, 6)), torch.tensor([[EOS, 5, 6]])
    padding = torch.full((1, 3), PAD)
    alone = model(sentence, decoder_input_ids=previous).logits
    for source in (torch.cat([padding, sentence], 1), torch.cat([sentence, padding], 1)):
        for mask in (None, source != PAD, torch.ones_like(source)):
            logits = model(source, mask, previous).logits
            torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attention_mask_leaves_tokens_out() -> None:
    model = to_huggingface(convolved_subnet())
    source, previous = torch.randint(4, VOCABULARY, (1, 8)), torch.tensor([[EOS, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0]])
    expected = model(source[:, 2:7], decoder_input_ids=previous).logits
    torch.testing.assert_close(model(source, mask, previous).logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(
        model.generate(source, attention_mask=mask, max_new_tokens=8), model.generate(source[:, 2:7], max_new_tokens=8)
    )


@torch.no_grad()
def test_target_mask_may_end_in_zeros_only() -> None:
    subnet = random_subnet()
    model, (source, previous) = to_huggingface(subnet), batch(subnet)
    mask = torch.ones_like(previous)
    mask[0, -2:] = 0
    logits = model(source, decoder_input_ids=previous, decoder_attention_mask=mask).logits
    assert torch.equal(logits, subnet(source, previous))
    with pytest.raises(ValueError, match="padded on the right only"):
        model(source, decoder_input_ids=previous, decoder_attention_mask=mask.flip(1))


def test_sentences_longer_than_the_positions_are_refused() -> None:
    subnet = random_subnet()
    model = to_huggingface(subnet)
    long, short = torch.full((1, 41), 5), torch.full((1, 3), 5)
    for source, previous in ((long, short), (short, long)):
        with pytest.raises(ValueError, match="41 tokens: this network has 40 positions"):
            model(source, decoder_input_ids=previous)
    with pytest.raises(ValueError, match="41 tokens: this network has 40 positions"):
        model.generate(long)
    with pytest.raises(ValueError, match="text 1 has 42 tokens: this network has 40 positions"):
        translate(model, word_tokenizer(), ["w5", "w6 " * 41])
    assert model.generate(short, min_new_tokens=40, max_new_tokens=40).shape == (1, 41)
    with pytest.raises(ValueError, match="up to 41 tokens are asked for: this network has 40 positions"):
        model.generate(short, max_new_tokens=41)


# ---- caches


@pytest.mark.parametrize("make", [random_subnet, convolved_subnet])
@pytest.mark.parametrize("normalize_before", [False, True])
@torch.no_grad()
def test_decoding_in_steps_equals_the_full_forward(make, normalize_before: bool) -> None:
    subnet = make(widths=(32, 48), normalize_before=normalize_before)
    source, previous = batch(subnet, targets=12)
    model, cache, logits = to_huggingface(subnet), new_cache(), []
    encoded = model.encoder(source)
    for step in previous.split([1, 1, 3, 1, 4, 2], dim=1):
        logits.append(model(encoder_outputs=encoded, decoder_input_ids=step, cache=cache).logits)
    assert cache.get_seq_length() == 12
    torch.testing.assert_close(torch.cat(logits, 1), subnet(source, previous), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_beam_search_is_the_same_with_cache_without_and_alone(seed: int) -> None:
    subnet = convolved_subnet(seed)
    model, (source, _) = to_huggingface(subnet), batch(subnet)
    options = dict(num_beams=4, max_new_tokens=12, min_new_tokens=3)
    tokens = without_padding(model.generate(source, **options))
    assert len({tuple(sentence) for sentence in tokens}) == 3
    assert without_padding(model.generate(source, use_cache=False, **options)) == tokens
    assert without_padding(model.generate(source, attention_mask=source != PAD, **options)) == tokens
    for sentence, expected in zip(source, tokens):
        alone = sentence[sentence != PAD][None]
        assert without_padding(model.generate(alone, **options)) == [expected]


def test_beams_are_reordered_with_their_history() -> None:
    """Where a beam is another's continuation, the states before the convolutions must be the other's."""
    model = to_huggingface(convolved_subnet(1))
    source = torch.randint(4, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(0))
    options = dict(num_beams=6, max_new_tokens=15, num_return_sequences=6, min_new_tokens=15)
    result = model.generate(source, **options, return_dict_in_generate=True, output_scores=True)
    again = model.generate(source, **options, return_dict_in_generate=True, output_scores=True, use_cache=False)
    assert (result.beam_indices[:, :-1].diff(dim=1) != 0).any()
    assert torch.equal(result.sequences, again.sequences)
    torch.testing.assert_close(result.sequences_scores, again.sequences_scores)


@pytest.mark.parametrize("make", [random_subnet, convolved_subnet])
@torch.no_grad()
def test_cache_selects_repeats_and_resets(make) -> None:
    subnet = make()
    model, (source, previous) = to_huggingface(subnet), batch(subnet)
    cache, encoded, rows = new_cache(), model.encoder(source), torch.tensor([2, 0])
    model(encoder_outputs=encoded, decoder_input_ids=previous[:, :5], cache=cache)
    cache.batch_select_indices(rows)
    cache.batch_repeat_interleave(2)
    rows = rows.repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 2, 1, 0]))
    rows = rows.flip(0)
    more = model(source[rows], decoder_input_ids=previous[rows, 5:], cache=cache).logits
    expected = subnet(source[rows], previous[rows])
    torch.testing.assert_close(more, expected[:, 5:], rtol=1e-5, atol=1e-5)
    cache.reset()
    first = model(source, decoder_input_ids=previous, cache=cache).logits
    torch.testing.assert_close(first, subnet(source, previous), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cache_is_cropped_unless_there_are_convolutions() -> None:
    for make in (random_subnet, convolved_subnet):
        subnet = make()
        model, (source, previous) = to_huggingface(subnet), batch(subnet)
        cache = getattr(model(source, decoder_input_ids=previous, use_cache=True), CACHE)
        if make is convolved_subnet:
            with pytest.raises(NotImplementedError, match="convolutions"):
                cache.crop(-2)
        else:
            cache.crop(-2)
            again = model(source, decoder_input_ids=previous[:, -2:], cache=cache).logits
            torch.testing.assert_close(again, subnet(source, previous)[:, -2:], rtol=1e-5, atol=1e-5)


def test_other_caches_are_refused() -> None:
    subnet = random_subnet()
    model, (source, previous) = to_huggingface(subnet), batch(subnet)
    with pytest.raises(TypeError, match="EncoderDecoderCache"):
        model(source, decoder_input_ids=previous, cache=DynamicCache())
    with pytest.raises(TypeError, match="EncoderDecoderCache"):
        model.generate(source, cache_implementation="static", max_new_tokens=3)
    offloading = new_cache()
    offloading.self_attention_cache.offloading = True
    with pytest.raises(TypeError, match="EncoderDecoderCache"):
        model(source, decoder_input_ids=previous, cache=offloading)


# ---- translation


def test_translations_do_not_depend_on_batches() -> None:
    model, tokenizer = to_huggingface(convolved_subnet()), word_tokenizer()
    texts = [*TEXTS, ""]
    together = translate(model, tokenizer, texts)
    assert len(set(together)) > 3
    assert translate(model, tokenizer, texts, max_tokens=1) == together
    assert translate(model, tokenizer, texts[::-1], max_tokens=70) == together[::-1]


def test_translating_leaves_the_mode_and_has_no_dropout() -> None:
    subnet = random_subnet()
    expected = translate(to_huggingface(subnet), word_tokenizer(), TEXTS)
    model = to_huggingface(subnet.train())
    assert translate(model, word_tokenizer(), TEXTS) == expected
    assert all(module.training for module in model.modules())


def test_one_string_and_no_beam_are_refused() -> None:
    model, tokenizer = to_huggingface(random_subnet()), word_tokenizer()
    with pytest.raises(TypeError, match="texts is one string"):
        translate(model, tokenizer, TEXTS[0])
    with pytest.raises(ValueError, match="num_beams = 0: at least 1"):
        translate(model, tokenizer, TEXTS, num_beams=0)
    with pytest.raises(ValueError, match="it has 61 tokens, the network 60"):
        translate(model, word_tokenizer(size=VOCABULARY + 1), TEXTS)


def test_translations_end_at_the_length() -> None:
    model = to_huggingface(random_subnet())
    for num_beams in (1, 3):
        for text in translate(model, word_tokenizer(), TEXTS, num_beams=num_beams, max_length=2):
            assert len(text.split()) <= 2


def test_bleu_is_sacrebleus() -> None:
    pytest.importorskip("sacrebleu")
    references = [f"the {i} cats sat on the mat number {i * i} in the room" for i in range(40)]
    hypotheses = [line.replace("sat", "lay") if i % 3 else line for i, line in enumerate(references)]
    result = bleu(hypotheses, references)
    assert result["low"] < result["bleu"] < result["high"] < 100
    assert "bs:1000|seed:12345" in result["signature"] and bleu(hypotheses, references) == result
    assert bleu(hypotheses, references, seed=1)["low"] != result["low"]
    assert bleu(references, references)["bleu"] == pytest.approx(100)
    assert "SACREBLEU_SEED" not in os.environ
    with pytest.raises(ValueError, match="39 hypotheses of 40"):
        bleu(hypotheses[:-1], references)


def test_a_paired_difference_is_narrower_than_either_interval() -> None:
    pytest.importorskip("sacrebleu")
    references = [f"the {i} cats sat on the mat number {i * i} in the room" for i in range(40)]
    hypotheses = [line.replace("sat", "lay") if i % 3 else line for i, line in enumerate(references)]
    others = [line.replace("room", "house") if i % 4 == 0 else line for i, line in enumerate(hypotheses)]
    found, alone = compare_bleu(hypotheses, others, references), bleu(hypotheses, references)
    assert found["difference"] == pytest.approx(alone["bleu"] - bleu(others, references)["bleu"])
    assert 0 < found["difference_low"] < found["difference"] < found["difference_high"]
    assert found["difference_high"] - found["difference_low"] < alone["high"] - alone["low"]
    same = {"difference": 0.0, "difference_low": 0.0, "difference_high": 0.0}
    assert compare_bleu(hypotheses, hypotheses, references) == same
    with pytest.raises(ValueError, match="40 and 39 hypotheses of 40"):
        compare_bleu(hypotheses, others[1:], references)


def test_missing_sacrebleu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ImportError, match=r"supernet\[text\]"):
        bleu(["a"], ["a"])


# ---- as a folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, hat.Transformer]:
    home = tmp_path_factory.mktemp("exports")
    subnets = {
        "convolved": convolved_subnet(3, widths=(32, 48)),
        "tied": random_subnet(1, widths=(48, 48), head_dim=16),
        "untied": random_subnet(2, share_embeddings=False, normalize_before=True),
    }
    options = {"tokenizer": word_tokenizer(), "generation": {"max_length": 12}}
    return {save_huggingface(subnet, home / name, **options): subnet for name, subnet in subnets.items()}


@pytest.fixture(scope="module")
def loaded(exports: dict[Path, hat.Transformer], tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict]:
    """What a process makes of the folders that cannot import our packages."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-W", "error", "-c", LOAD, *map(str, exports)]
    done = subprocess.run(command, cwd=home, env=environment, check=True, capture_output=True, text=True)
    return {folder: json.loads(done.stdout)[str(folder)] for folder in exports}


def test_loaded_model_is_of_the_folders_code(loaded: dict[Path, dict]) -> None:
    for result in loaded.values():
        assert result["module"].startswith("transformers_modules.") and not result["training"]


def test_loaded_model_generates_the_same_tokens(loaded: dict[Path, dict], exports: dict) -> None:
    for folder, subnet in exports.items():
        inputs = word_tokenizer()(TEXTS, padding=True, return_tensors="pt")
        tokens = to_huggingface(subnet).generate(inputs["input_ids"], num_beams=4, length_penalty=0.6, max_length=12)
        assert len({tuple(sentence) for sentence in tokens.tolist()}) > 1
        assert loaded[folder]["tokens"] == [tokens.tolist()] * 2


def test_loaded_embeddings_are_tied(loaded: dict[Path, dict], exports: dict) -> None:
    for folder, subnet in exports.items():
        assert loaded[folder]["tied"] == subnet.arguments["share_embeddings"]


def test_file_has_exactly_the_subnets_parameters(exports: dict[Path, hat.Transformer]) -> None:
    for folder, subnet in exports.items():
        file = folder / "model.safetensors"
        (params,) = subnet.costs(subnet.space.encode([subnet.config]))["params"]
        assert sum(tensor.numel() for tensor in load_file(file).values()) == params
        header = int.from_bytes(file.read_bytes()[:8], "little")
        assert file.stat().st_size == 8 + header + 4 * params


def test_product_needs_no_remote_code(exports: dict[Path, hat.Transformer]) -> None:
    for folder, subnet in exports.items():
        model, (source, previous) = AutoModelForSeq2SeqLM.from_pretrained(folder), batch(subnet)
        assert type(model) is HatForConditionalGeneration
        with torch.no_grad():
            assert_same(model(source, decoder_input_ids=previous).logits, subnet(source, previous), exactly=False)
        assert model.generation_config.num_beams == 4 and model.generation_config.max_length == 12


def test_model_that_was_trained_further_is_saved_with_its_code(exports: dict, tmp_path: Path) -> None:
    for folder, subnet in exports.items():
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        with torch.no_grad():
            model.decoder.layers[0].feed_forward.fc1.weight.add_(1)
        model.save_pretrained(tmp_path / folder.name)
        for name in ("modeling_hat.py", "layers.py"):
            assert (tmp_path / folder.name / name).read_bytes() == (Path(hat.__path__[0]) / name).read_bytes()
        again = from_huggingface(tmp_path / folder.name)
        assert again.config == subnet.config
        assert torch.equal(
            again.decoder.layers[0].feed_forward.fc1.weight, model.decoder.layers[0].feed_forward.fc1.weight
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(tmp_path: Path, dtype: torch.dtype) -> None:
    subnet = convolved_subnet(widths=(32, 48), dropout=0.2).to(dtype)
    subnet.input_spec = {"vocab_size": VOCABULARY, "max_length": 40, "source_length": 7}
    for source in (to_huggingface(subnet), save_huggingface(subnet, tmp_path / "export")):
        again = from_huggingface(source)
        assert (again.config, again.arguments, again.space) == (subnet.config, subnet.arguments, subnet.space)
        assert again.input_spec == subnet.input_spec and again.extracted
        for ours, theirs in zip(
            (*subnet.state_dict().values(), *subnet.buffers()), (*again.state_dict().values(), *again.buffers())
        ):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_positions_are_right_after_loading_in_any_precision(tmp_path: Path) -> None:
    subnet = random_subnet(widths=(32, 48))
    folder = save_huggingface(subnet, tmp_path / "export")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype)
        for side in ("encoder", "decoder"):
            expected = getattr(subnet, side).embedding.positions.to(dtype)
            assert torch.equal(getattr(model, side).embedding.positions, expected)


def test_generation_is_told_in_the_folder(tmp_path: Path) -> None:
    subnet = random_subnet()
    for generation, expected in (
        (None, {"num_beams": 4, "length_penalty": 0.6, "max_length": 40}),
        ({"num_beams": 1, "max_new_tokens": 5}, {"num_beams": 1, "max_new_tokens": 5}),
    ):
        folder = save_huggingface(subnet, tmp_path / "export", generation=generation, overwrite=True)
        written = json.loads((folder / "generation_config.json").read_text())
        assert expected.items() <= written.items() and ("max_length" in written) == ("max_length" in expected)
    with pytest.raises(ValueError, match="beams is not a field"):
        save_huggingface(subnet, tmp_path / "other", generation={"beams": 3})


def test_card_shows_how_to_load(exports: dict[Path, hat.Transformer]) -> None:
    for folder in exports:
        card = (folder / "README.md").read_text()
        assert "AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)" in card
        assert f'folder = "{folder.name}"' in card
        assert "AutoTokenizer" in card and str(folder) not in card


# ---- bad input


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (word_tokenizer(size=VOCABULARY + 1), "it has 61 tokens, the network 60"),
        (word_tokenizer(pad=3), "its pad token has the id 3, the network's has 1"),
    ],
)
def test_tokenizer_with_other_ids_is_refused(tmp_path: Path, tokenizer, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        save_huggingface(random_subnet(), tmp_path / "export", tokenizer)
    assert not list(tmp_path.iterdir())


def test_tokenizer_of_another_text_is_refused(tmp_path: Path) -> None:
    subnet, tokenizer = random_subnet(), word_tokenizer()
    subnet.input_spec = {"tokenizer": tokenizer.backend_tokenizer.to_str().replace('"w5"', '"other"')}
    with pytest.raises(ValueError, match="not the one that this network was trained with"):
        save_huggingface(subnet, tmp_path / "export", tokenizer)
    subnet.input_spec = {"tokenizer": tokenizer.backend_tokenizer.to_str()}
    save_huggingface(subnet, tmp_path / "export", tokenizer)


def test_one_tokenizer_for_two_vocabularies_is_refused(tmp_path: Path) -> None:
    subnet = random_subnet(share_embeddings=False, target_vocab_size=50)
    with pytest.raises(ValueError, match="vocabularies of 60 and 50"):
        save_huggingface(subnet, tmp_path / "export", word_tokenizer())


@pytest.mark.parametrize("function", [to_huggingface, lambda supernet: save_huggingface(supernet, "never")])
def test_supernet_is_refused(function) -> None:
    with pytest.raises(ValueError, match="extract"):
        function(hat.Transformer(random_subnet().space, vocab_size=10, qkv_dim=64))


def test_other_module_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear"):
        to_huggingface(nn.Linear(2, 2))


def test_existing_folder_is_refused_unless_overwritten(tmp_path: Path) -> None:
    first, second = random_subnet(0), random_subnet(1)
    folder = save_huggingface(first, tmp_path / "export", word_tokenizer())
    with pytest.raises(FileExistsError, match="overwrite"):
        save_huggingface(second, folder)
    assert from_huggingface(folder).config == first.config
    save_huggingface(second, folder, overwrite=True)
    assert from_huggingface(folder).config == second.config
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_failed_check_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hat.huggingface, "TOLERANCE", -1)
    with pytest.raises(RuntimeError, match="differs"):
        save_huggingface(random_subnet(), tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_nan_fails_the_check() -> None:
    subnet = random_subnet()
    subnet.decoder.output.weight.data[5, 0] = float("nan")
    with pytest.raises(RuntimeError, match="nan"):
        to_huggingface(subnet)


def test_config_that_is_not_the_subnets_is_refused(tmp_path: Path) -> None:
    folder = save_huggingface(random_subnet(), tmp_path / "export")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"decoder_dropout": 0.9}))
    with pytest.raises(ValueError, match=r"decoder_dropout is 0\.9, the subnet's is"):
        from_huggingface(folder)
    del config["subnet"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not name its subnet"):
        from_huggingface(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors"):
        from_huggingface(folder)
    with pytest.raises(ValueError, match="config.json"):
        from_huggingface(tmp_path / "nothing")
