"""The Hugging Face model beside one of transformers' own: what Marian takes, ours takes, with results of one form."""

import copy
import inspect

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import BaseModelOutput

import hat
from hat.data import fast, numbers, train_tokenizer
from hat.huggingface import from_huggingface, save_huggingface, to_huggingface
from hat.layers import EOS, PAD
from hat.modeling_hat import CACHE, HatConfig, HatForConditionalGeneration
from hat.translation import translate

VOCABULARY, WIDTH = 60, 32
SOURCE = torch.tensor([[7, 8, 9, 10, 11, 12, EOS], [20, 21, 22, EOS, PAD, PAD, PAD]])
MASK = (SOURCE != PAD).long()
PREFIX = torch.tensor([[EOS, 9], [EOS, 30]])
GREEDY = dict(num_beams=1, length_penalty=None, max_new_tokens=6, max_length=None)


def network(seed=0, noise=0.2, **options):
    """A subnet of two encoder and two decoder layers; by default each attends to the last encoder layer only."""
    space = dict(embed_dim=[WIDTH], ffn_embed_dim=[48], heads=[2], encoder_layer_num=[2], decoder_layer_num=[2])
    space |= {"arbitrary_ende_attn": [-1]} | options.pop("space", {})
    torch.manual_seed(seed)
    net = hat.Transformer(
        hat.transformer_space(**space), **{"vocab_size": VOCABULARY, "head_dim": 16, "max_positions": 40} | options
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return net.extract(net.space.largest()).eval()


def ours(**options):
    return to_huggingface(network(**options))


def marian():
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=VOCABULARY,
        decoder_vocab_size=VOCABULARY,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=40,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
        bos_token_id=0,
        init_std=0.3,
    )
    return MarianMTModel(config).eval()


MODELS = {"marian": marian, "ours": ours}
SPANNING = {"arbitrary_ende_attn": [1]}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def shapes(value):
    """The shapes of a result, in whatever it is nested."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [shapes(part) for part in value]
    return {name: shapes(part) for name, part in value.items() if not name.endswith(("cache", "past_key_values"))}


def new_cache():
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def returned_cache(output):
    return output[CACHE]


# ---- one forward

FORWARDS = {
    "plain": lambda m: m(SOURCE, MASK, PREFIX),
    "labels": lambda m: m(input_ids=SOURCE, attention_mask=MASK, labels=PREFIX),
    "both": lambda m: m(input_ids=SOURCE, attention_mask=MASK, decoder_input_ids=PREFIX, labels=PREFIX),
    "decoder mask": lambda m: m(SOURCE, MASK, PREFIX, torch.ones_like(PREFIX)),
    "encoder outputs": lambda m: m(
        encoder_outputs=m.get_encoder()(SOURCE, MASK), attention_mask=MASK, decoder_input_ids=PREFIX
    ),
    "encoder tuple": lambda m: m(
        encoder_outputs=m.get_encoder()(SOURCE, MASK, return_dict=False), attention_mask=MASK, decoder_input_ids=PREFIX
    ),
    "another class's encoder outputs": lambda m: m(
        encoder_outputs=BaseModelOutput(last_hidden_state=m.get_encoder()(SOURCE, MASK).last_hidden_state),
        attention_mask=MASK,
        decoder_input_ids=PREFIX,
    ),
    "no cache": lambda m: m(SOURCE, MASK, PREFIX, use_cache=False),
    "embeddings": lambda m: m(
        inputs_embeds=m.get_input_embeddings()(SOURCE), attention_mask=MASK, decoder_input_ids=PREFIX
    ),
    "decoder embeddings": lambda m: m(
        input_ids=SOURCE, attention_mask=MASK, decoder_inputs_embeds=m.get_input_embeddings()(PREFIX)
    ),
}
RECORDED = {
    "all": lambda m: m(
        SOURCE, MASK, PREFIX, output_attentions=True, output_hidden_states=True, labels=PREFIX, use_cache=False
    ),
    "encoder": lambda m: m.get_encoder()(SOURCE, MASK, output_attentions=True, output_hidden_states=True),
    "tuple": lambda m: m(SOURCE, MASK, PREFIX, output_hidden_states=True, use_cache=False, return_dict=False),
}


@pytest.mark.parametrize("call", FORWARDS)
@torch.no_grad()
def test_a_forward_gives_what_marian_gives_and_the_same_by_every_way_in(model, call):
    output, plain = FORWARDS[call](model), model(SOURCE, MASK, PREFIX)
    expected = FORWARDS[call](marian())
    assert list(output.keys()) == list(expected.keys()) and shapes(output) == shapes(expected)
    if call != "labels":
        torch.testing.assert_close(output.logits, plain.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("call", RECORDED)
@torch.no_grad()
def test_attentions_and_hidden_states_are_returned_as_marian_returns_them(call):
    results = {}
    for name, make in MODELS.items():
        model = make()
        model.set_attn_implementation("eager")
        results[name] = RECORDED[call](model)
    if call == "encoder":  # ours has what the decoder attends to besides
        assert {"memory", "mask"} < results["ours"].keys()
        results["ours"] = {name: results["ours"][name] for name in results["marian"]}
    assert shapes(results["ours"]) == shapes(results["marian"])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("normalize_before", [False, True])
@torch.no_grad()
def test_recorded_states_are_those_of_the_pass(implementation, normalize_before):
    model = ours(space=SPANNING, normalize_before=normalize_before)
    plain = model(SOURCE, MASK, PREFIX)
    model.set_attn_implementation(implementation)
    output = model(SOURCE, MASK, PREFIX, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(output.logits, plain.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    logits = model.decoder.output(output.decoder_hidden_states[-1])
    torch.testing.assert_close(logits, output.logits, rtol=1e-5, atol=1e-5)
    for weights in (*output.encoder_attentions, *output.decoder_attentions, *output.cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), rtol=1e-5, atol=1e-5)
    assert (output.encoder_attentions[0][1, ..., 4:] == 0).all()  # padding
    assert (output.decoder_attentions[0][..., 0, 1] == 0).all()  # the future
    assert output.cross_attentions[0].shape == (2, 2, 2, 2 * SOURCE.size(1))  # of two encoder layers
    assert model(SOURCE, MASK, PREFIX).encoder_attentions is None


@torch.no_grad()
def test_encoder_outputs_of_one_layer_are_not_those_of_two():
    model = ours(space=SPANNING)
    plain = model(SOURCE, MASK, PREFIX).logits
    encoded = model.get_encoder()(SOURCE, MASK, output_hidden_states=True)
    options = dict(attention_mask=MASK, decoder_input_ids=PREFIX)
    last, states = encoded.last_hidden_state, encoded.hidden_states
    given = BaseModelOutput(last_hidden_state=last, hidden_states=states)
    torch.testing.assert_close(model(encoder_outputs=given, **options).logits, plain)
    with pytest.raises(ValueError, match="attends to the last 2 encoder layers"):
        model(encoder_outputs=BaseModelOutput(last_hidden_state=last), **options)


def test_the_arguments_are_marians():
    assert inspect.signature(MarianMTModel.forward).parameters.keys() <= (
        inspect.signature(HatForConditionalGeneration.forward).parameters.keys() | {"cache"}
    )
    encoder = inspect.signature(MarianMTModel(MarianConfig(**SMALLEST)).get_encoder().forward).parameters.keys()
    assert encoder <= inspect.signature(ours().get_encoder().forward).parameters.keys()


SMALLEST = dict(vocab_size=60, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8)
SMALLEST |= dict(encoder_attention_heads=1, decoder_attention_heads=1, max_position_embeddings=8, pad_token_id=1)


def test_what_is_missing_or_given_twice_is_named():
    model, encoded = ours(), ours().get_input_embeddings()(SOURCE)
    with pytest.raises(ValueError, match="decoder_input_ids and decoder_inputs_embeds"):
        model.generate(SOURCE, decoder_inputs_embeds=encoded, **GREEDY)
    for options, message in (
        (dict(decoder_input_ids=PREFIX), "input_ids or encoder_outputs"),
        (dict(input_ids=SOURCE), "decoder_input_ids or labels"),
        (dict(input_ids=SOURCE, inputs_embeds=encoded, decoder_input_ids=PREFIX), "input_ids and inputs_embeds"),
        (
            dict(input_ids=SOURCE, decoder_inputs_embeds=encoded, decoder_input_ids=PREFIX),
            "decoder_input_ids and decoder_inputs_embeds",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model(**options)


# ---- padding of targets

TARGETS = torch.tensor([[9, 10, EOS, -100, -100], [11, 12, 13, 14, EOS]])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (dict(labels=TARGETS.flip(1)), "labels"),
        (dict(labels=TARGETS.flip(1), decoder_input_ids=torch.tensor([[EOS, PAD, PAD, 9, 10]] * 2)), "decoder_input"),
        (dict(decoder_input_ids=torch.tensor([[PAD, EOS, 9], [EOS, 10, 11]])), "decoder_input_ids"),
        (dict(decoder_input_ids=PREFIX, decoder_attention_mask=torch.tensor([[0, 1], [1, 1]])), "decoder_attention"),
    ],
)
def test_targets_padded_on_the_left_are_refused(options, name):
    with pytest.raises(ValueError, match=f"{name}.*: padding before a token.* right"):
        ours()(SOURCE, MASK, **options)


@torch.no_grad()
def test_the_loss_of_a_batch_is_that_of_its_sentences():
    model = ours()
    together = model(SOURCE, MASK, labels=TARGETS).loss
    alone = [
        model(source[mask == 1][None], labels=target[target != -100][None], num_items_in_batch=8).loss
        for source, mask, target in zip(SOURCE, MASK.bool(), TARGETS)
    ]
    torch.testing.assert_close(together, sum(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_collators_batch_of_an_exported_tokenizer_is_padded_as_the_model_needs(tmp_path, tokenizer, pairs, side):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    folder = save_huggingface(network(vocab_size=280, max_positions=80), tmp_path / "export", tokenizer)
    model, tokenizer = HatForConditionalGeneration.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = [dict(tokenizer(source, text_target=target)) for source, target in pairs[:5]]
    batch = DataCollatorForSeq2Seq(tokenizer, model)(rows)
    assert (batch["labels"][:, 0] != -100).all() and (batch["input_ids"][:, 0] != PAD).all()
    total = batch["labels"].ne(-100).sum()
    alone = [
        model(
            torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]]), num_items_in_batch=total
        ).loss.item()
        for row in rows
    ]
    assert model(**batch).loss.item() == pytest.approx(sum(alone), rel=1e-5)


def test_labels_of_part_of_a_target_are_right_where_the_decoder_is_given_all():
    labels = TARGETS.clone()
    labels[1, :2] = -100
    previous = ours().prepare_decoder_input_ids_from_labels(TARGETS)
    assert ours()(SOURCE, MASK, decoder_input_ids=previous, labels=labels).loss.isfinite()


# ---- generation


class Forbid(LogitsProcessor):
    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, 5:20] = -float("inf")
        return scores


class AfterThree(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.size(1) >= 4)


ONE = dict(attention_mask=MASK[:1])
EVERYTHING = dict(
    return_dict_in_generate=True,
    output_scores=True,
    output_logits=True,
    output_attentions=True,
    output_hidden_states=True,
)
GENERATIONS = {
    "greedy": lambda m: m.generate(SOURCE, attention_mask=MASK, **GREEDY),
    "input_ids by name": lambda m: m.generate(input_ids=SOURCE, attention_mask=MASK, **GREEDY),
    "encoder outputs": lambda m: m.generate(
        encoder_outputs=m.get_encoder()(SOURCE, attention_mask=MASK), attention_mask=MASK, **GREEDY
    ),
    "embeddings": lambda m: m.generate(inputs_embeds=m.get_input_embeddings()(SOURCE), attention_mask=MASK, **GREEDY),
    "empty cache": lambda m: m.generate(SOURCE, attention_mask=MASK, cache=new_cache(), **GREEDY),
    "cache made of the config": lambda m: m.generate(
        SOURCE,
        attention_mask=MASK,
        cache=EncoderDecoderCache(DynamicCache(config=m.config), DynamicCache(config=m.config)),
        **GREEDY,
    ),
    "no cache": lambda m: m.generate(SOURCE, attention_mask=MASK, use_cache=False, **GREEDY),
    "labels of a batch": lambda m: m.generate(SOURCE, attention_mask=MASK, labels=PREFIX, **GREEDY),
    "generation config": lambda m: m.generate(
        SOURCE, attention_mask=MASK, generation_config=GenerationConfig(max_new_tokens=6, num_beams=1)
    ),
}
OTHERS = {
    "prefix": lambda m: m.generate(SOURCE, attention_mask=MASK, decoder_input_ids=PREFIX, **GREEDY),
    "prefix and mask": lambda m: m.generate(
        SOURCE,
        attention_mask=MASK,
        decoder_input_ids=PREFIX,
        decoder_attention_mask=torch.ones_like(PREFIX),
        **GREEDY,
    ),
    "prefix without its start": lambda m: m.generate(
        SOURCE,
        attention_mask=MASK,
        decoder_input_ids=PREFIX[:, 1:],
        decoder_attention_mask=torch.ones_like(PREFIX[:, 1:]),
        **GREEDY,
    ),
    "beams": lambda m: m.generate(SOURCE, attention_mask=MASK, num_beams=3, max_new_tokens=6),
    "beams and encoder outputs": lambda m: m.generate(
        encoder_outputs=m.get_encoder()(SOURCE, attention_mask=MASK),
        attention_mask=MASK,
        num_beams=3,
        num_return_sequences=2,
        max_new_tokens=6,
    ),
    "beams and decoder mask": lambda m: m.generate(
        SOURCE,
        attention_mask=MASK,
        decoder_input_ids=PREFIX,
        decoder_attention_mask=torch.ones_like(PREFIX),
        num_beams=3,
        max_new_tokens=6,
    ),
    "beams and a cache": lambda m: m.generate(
        SOURCE, attention_mask=MASK, cache=new_cache(), num_beams=3, max_new_tokens=6
    ),
    "beams that sample": lambda m: m.generate(
        SOURCE, attention_mask=MASK, num_beams=3, do_sample=True, num_return_sequences=3, max_new_tokens=6
    ),
    "sampling": lambda m: m.generate(
        SOURCE, attention_mask=MASK, do_sample=True, top_k=10, num_return_sequences=3, max_new_tokens=6
    ),
    "early stopping": lambda m: m.generate(
        SOURCE, attention_mask=MASK, num_beams=3, early_stopping=True, max_new_tokens=6
    ),
    "forced tokens": lambda m: m.generate(
        SOURCE, attention_mask=MASK, forced_bos_token_id=17, forced_eos_token_id=EOS, **GREEDY
    ),
    "allowed tokens": lambda m: m.generate(
        SOURCE, attention_mask=MASK, prefix_allowed_tokens_fn=lambda i, ids: [30 + i, 31 + i], **GREEDY
    ),
    "processor": lambda m: m.generate(
        SOURCE, attention_mask=MASK, logits_processor=LogitsProcessorList([Forbid()]), **GREEDY
    ),
    "criteria": lambda m: m.generate(
        SOURCE, attention_mask=MASK, stopping_criteria=StoppingCriteriaList([AfterThree()]), **GREEDY
    ),
    "penalties": lambda m: m.generate(
        SOURCE,
        attention_mask=MASK,
        no_repeat_ngram_size=2,
        repetition_penalty=1.5,
        encoder_no_repeat_ngram_size=2,
        min_new_tokens=3,
        **GREEDY,
    ),
    "assistant": lambda m: m.generate(SOURCE[:1], **ONE, assistant_model=copy.deepcopy(m), **GREEDY),
    "assistant and everything": lambda m: m.generate(
        SOURCE[:1], **ONE, assistant_model=copy.deepcopy(m), **GREEDY, **EVERYTHING
    ),
    "lookup": lambda m: m.generate(SOURCE[:1], **ONE, prompt_lookup_num_tokens=2, **GREEDY),
    "everything": lambda m: m.generate(SOURCE, attention_mask=MASK, **GREEDY, **EVERYTHING),
    "beams and everything": lambda m: m.generate(
        SOURCE, attention_mask=MASK, num_beams=3, num_return_sequences=2, max_new_tokens=6, **EVERYTHING
    ),
}


@pytest.fixture(scope="module")
def speechless():
    """Both models, in eager attention, that never end a sentence, so that results are of one length."""
    models = {name: make() for name, make in MODELS.items()}
    for model in models.values():
        model.set_attn_implementation("eager")
        model.generation_config.eos_token_id = None
    return models


@pytest.mark.parametrize("call", GENERATIONS)
@torch.no_grad()
def test_every_way_to_generate_gives_the_greedy_tokens(model, call):
    assert torch.equal(GENERATIONS[call](model), GENERATIONS["greedy"](model))


@pytest.mark.parametrize("call", OTHERS)
@torch.no_grad()
def test_what_marian_generates_with_ours_generates_with(speechless, call):
    results = {}
    for name, model in speechless.items():
        torch.manual_seed(0)
        results[name] = OTHERS[call](model)
    assert shapes(results["ours"]) == shapes(results["marian"])


@pytest.mark.parametrize("call", GENERATIONS | OTHERS)
@torch.no_grad()
def test_networks_that_attend_to_several_layers_generate_so_too(call):
    model, calls = ours(space=SPANNING, normalize_before=True, share_embeddings=False), GENERATIONS | OTHERS
    result = calls[call](model)
    if call in GENERATIONS:
        assert torch.equal(result, GENERATIONS["greedy"](model))


@torch.no_grad()
def test_generation_goes_on_with_the_cache_of_an_earlier_call():
    model = ours()
    options = dict(num_beams=1, length_penalty=None, max_length=None, attention_mask=MASK)
    whole = model.generate(SOURCE, max_new_tokens=8, **options)
    first = model.generate(SOURCE, max_new_tokens=4, return_dict_in_generate=True, **options)
    cache = returned_cache(first)
    assert cache.get_seq_length() == 4  # the last token was not fed
    going_on = dict(decoder_input_ids=first.sequences, cache=cache)
    with pytest.raises(ValueError, match="the cache holds 2 hypotheses, and there are 6"):
        model.generate(SOURCE, **going_on, num_beams=3, max_new_tokens=4)
    assert torch.equal(model.generate(SOURCE, **going_on, max_new_tokens=4, **options), whole)
    cache.crop(2 - cache.get_seq_length())
    assert torch.equal(model.generate(SOURCE, **going_on, max_new_tokens=4, **options), whole)


@torch.no_grad()
def test_a_network_with_convolutions_refuses_an_assistant():
    model = ours(space={"conv_kernel_size": [1, 3], "encoder_conv_kernel_size": [3], "decoder_conv_kernel_size": [3]})
    with pytest.raises(ValueError, match="cache that can be cropped"):
        model.generate(SOURCE[:1], assistant_model=copy.deepcopy(model), **GREEDY)


def test_prefixes_of_several_lengths_are_refused():
    for prefix in ([[EOS, 9, PAD], [EOS, 9, 10]], [[PAD, EOS, 9], [EOS, 9, 10]]):
        with pytest.raises(ValueError, match="prefixes that are continued together are of one length"):
            ours().generate(SOURCE, decoder_input_ids=torch.tensor(prefix), **GREEDY)


def favouring(token, strength=60.0, **options):
    """A network that would like to generate one token, always if the strength is large."""
    model = ours(share_embeddings=False, **options)
    with torch.no_grad():
        states = model(SOURCE, MASK, PREFIX, output_hidden_states=True).decoder_hidden_states[-1]
        mean = states.flatten(0, 1).mean(0)
        model.decoder.output.weight[token] += strength * mean / mean.norm() ** 2
    return model


@pytest.mark.parametrize("options", [GREEDY, dict(num_beams=3), dict(do_sample=True, num_beams=1, length_penalty=None)])
def test_no_padding_is_generated_and_no_translation_is_empty(options):
    options = {"max_new_tokens": 5} | options
    for token in (PAD, EOS):
        model = favouring(token)
        assert (model(SOURCE, MASK, PREFIX).logits[:, -1].argmax(-1) == token).any()
        model.generation_config = GenerationConfig(decoder_start_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD)
        for sentence in model.generate(SOURCE, attention_mask=MASK, **options).tolist():
            made = sentence[1:]
            until = made.index(EOS) if EOS in made else len(made)
            assert until > 0 and PAD not in made[:until]


def test_no_text_is_translated_to_nothing(tokenizer):
    for token in (PAD, EOS):
        model = favouring(token, vocab_size=280, max_positions=80)
        for options in (dict(num_beams=1), dict(num_beams=3), dict(num_beams=3, early_stopping=True)):
            assert all(translate(model, tokenizer, ["seven", "eight hundred and two"], max_length=4, **options))


def hats_beam_search(model, source, beam, length_penalty, longest):
    """The best hypothesis of HAT's generator, which ends when `beam` are finished; None where that takes too long."""
    hypotheses, scores, finished = [[EOS]], torch.zeros(1), []
    for step in range(longest):
        sources = source.expand(len(hypotheses), -1)
        logits = model(sources, decoder_input_ids=torch.tensor(hypotheses), use_cache=False).logits[:, -1]
        log_probs = logits.log_softmax(-1)
        log_probs[:, PAD] = -float("inf")
        if step == 0:
            log_probs[:, EOS] = -float("inf")
        best, where = (log_probs + scores[:, None]).flatten().topk(2 * beam)
        candidates = [(score, *divmod(i, VOCABULARY)) for score, i in zip(best.tolist(), where.tolist())]
        for score, row, token in candidates[:beam]:
            if token == EOS and len(finished) < beam:
                finished.append((score / (step + 1) ** length_penalty, [*hypotheses[row], EOS]))
        if len(finished) == beam:
            break
        going = [(score, row, token) for score, row, token in candidates if token != EOS][:beam]
        hypotheses, scores = (
            [[*hypotheses[row], token] for _, row, token in going],
            torch.tensor([s for s, _, _ in going]),
        )
    return max(finished)[1] if len(finished) == beam else None


@pytest.mark.parametrize(("strength", "noise", "seed"), [(1.0, 0.1, 3), (1.5, 0.2, 1), (2.0, 0.2, 0)])
@torch.no_grad()
def test_early_stopping_is_hats(strength, noise, seed):
    model, ended = favouring(EOS, strength, noise=noise, seed=seed), 0
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        source = torch.randint(4, VOCABULARY, (1, 6), generator=generator)
        expected = hats_beam_search(model, source, beam=4, length_penalty=0.6, longest=25)
        made = model.generate(source, num_beams=4, length_penalty=0.6, early_stopping=True, max_new_tokens=25)
        if expected is not None:
            assert made[0].tolist() == expected
            ended += 1
    assert ended


# ---- embeddings that are resized


@pytest.mark.parametrize(
    ("options", "matrices"),
    [
        (dict(), 1),
        (dict(space={"decoder_embed_dim": [48]}, share_embeddings=False), 3),
        (dict(share_embeddings=False), 3),
    ],
)
@pytest.mark.parametrize("tokens", [72, 50])
@torch.no_grad()
def test_resized_embeddings_stay_tied_and_give_the_same_logits(tmp_path, options, matrices, tokens):
    model = ours(**options)
    before = model(SOURCE, MASK, PREFIX).logits
    assert model.resize_token_embeddings(tokens, mean_resizing=False) is model.get_input_embeddings()
    sides = model.encoder.embedding.tokens, model.decoder.embedding.tokens, model.decoder.output
    assert len({side.weight.data_ptr() for side in sides}) == matrices
    assert [len(side.weight) for side in sides] == [tokens] * 3 and model.config.vocab_size == tokens
    known = min(tokens, VOCABULARY)
    torch.testing.assert_close(model(SOURCE, MASK, PREFIX).logits[..., :known], before[..., :known])
    model.save_pretrained(tmp_path)
    for again in (HatForConditionalGeneration.from_pretrained(tmp_path), to_huggingface(from_huggingface(tmp_path))):
        assert torch.equal(again(SOURCE, MASK, PREFIX).logits, model(SOURCE, MASK, PREFIX).logits)
    assert model.generate(SOURCE, attention_mask=MASK, **GREEDY).shape == (2, 7)


@torch.no_grad()
def test_embeddings_of_unequal_widths_are_resized_both():
    config = HatConfig(**to_config(ours()), decoder_embed_dim=48, decoder_position_dim=48)
    model = HatForConditionalGeneration(config).eval()
    model.resize_token_embeddings(pad_to_multiple_of=64, mean_resizing=False)
    assert model.decoder.embedding.tokens.weight is model.decoder.output.weight
    assert model(SOURCE, MASK, PREFIX).logits.size(-1) == 64 == len(model.get_input_embeddings().weight)


def to_config(model):
    names = [name for name in inspect.signature(HatConfig.__init__).parameters if name not in ("self", "others")]
    given = {name: getattr(model.config, name) for name in names}
    return {name: value for name, value in given.items() if name not in ("decoder_embed_dim", "decoder_position_dim")}


@torch.no_grad()
def test_two_vocabularies_are_resized_each_by_itself():
    model = ours(share_embeddings=False, target_vocab_size=50)
    model.resize_token_embeddings(70, mean_resizing=False)
    assert model(SOURCE, MASK, PREFIX).logits.size(-1) == 50
    model.resize_decoder_token_embeddings(55, mean_resizing=False)
    assert model(SOURCE, MASK, PREFIX).logits.size(-1) == 55
    assert (model.config.vocab_size, model.config.target_vocab_size) == (70, 55)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    with pytest.raises(ValueError, match="one vocabulary for source and target"):
        ours().resize_decoder_token_embeddings(70)


# ---- training


@pytest.mark.parametrize("target", ["labels", "decoder_input_ids"])
def test_gradients_are_the_same_with_activations_computed_again(target):
    gradients, runs = [], []
    for checkpointing in (False, True):
        model = ours(space=SPANNING, dropout=0.3).train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            model.encoder.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
        torch.manual_seed(0)
        model(SOURCE, MASK, **{target: TARGETS.clamp(min=PAD)}).logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    largest = max(gradient.abs().max().item() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():  # some CPUs sum convolutions in an order that memory decides
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6 * largest)
    assert len(runs) == 2
    with pytest.raises(ValueError, match="use_cache: with gradient checkpointing"):
        model(SOURCE, MASK, PREFIX, use_cache=True)


def test_eager_attention_trains_as_the_fused_one():
    losses = []
    for implementation in ("eager", "sdpa"):
        model = ours().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            module.__dict__.update({"dropout": 0.0} if "dropout" in module.__dict__ else {})
        model.set_attn_implementation(implementation)
        losses.append(model(SOURCE, MASK, labels=TARGETS).loss)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def pairs():
    return numbers("en", "de")["train"][:24]


@pytest.fixture(scope="module")
def tokenizer():
    return fast(train_tokenizer(numbers("en", "de")["train"], 280))


def trainer(model, tokenizer, pairs, folder, **options):
    pytest.importorskip("accelerate")
    rows = [dict(tokenizer(source, text_target=target)) for source, target in pairs]
    arguments = Seq2SeqTrainingArguments(
        str(folder),
        **dict(
            per_device_train_batch_size=8,
            max_steps=2,
            predict_with_generate=True,
            generation_max_length=12,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        | options,
    )
    return Seq2SeqTrainer(
        model,
        arguments,
        train_dataset=rows[:16],
        eval_dataset=rows[16:20],
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        compute_metrics=lambda made: {"rows": len(made.predictions), "padding": int((made.predictions == PAD).sum())},
    )


TRAININGS = {
    "plain": dict(),
    "bfloat16": dict(bf16=True),
    "label smoothing": dict(label_smoothing_factor=0.1),
    "accumulated": dict(per_device_train_batch_size=4, gradient_accumulation_steps=2),
    "activations computed again": dict(gradient_checkpointing=True),
    "evaluated by the loss": dict(predict_with_generate=False),
}


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
def test_a_trainer_trains_and_evaluates(tmp_path, tokenizer, pairs, name):
    model = ours(vocab_size=280, max_positions=80)
    training = trainer(model, tokenizer, pairs, tmp_path, **TRAININGS[name])
    before = copy.deepcopy(model.state_dict())
    assert np.isfinite(training.train().training_loss)
    assert any(not torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    figures = training.evaluate()
    assert np.isfinite(figures["eval_loss"]) and figures["eval_rows"] == 4


def test_gradients_that_are_accumulated_are_those_of_the_batch(tmp_path, tokenizer, pairs):
    losses = []
    for options in (dict(), dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)):
        model = ours(vocab_size=280, max_positions=80, dropout=0.0, attention_dropout=0.0)
        training = trainer(model, tokenizer, pairs, tmp_path, max_steps=1, **options)
        losses.append(training.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_training_goes_on_from_its_checkpoint_and_ends_as_a_folder(tmp_path, tokenizer, pairs):
    folder = save_huggingface(network(vocab_size=280, max_positions=80), tmp_path / "export", tokenizer)
    options = dict(save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2)
    ends = []
    for steps, start in ((4, None), (2, None), (4, True)):
        model = HatForConditionalGeneration.from_pretrained(folder)
        place = tmp_path / ("whole" if not ends else "parts")
        training = trainer(model, tokenizer, pairs, place, max_steps=steps, lr_scheduler_type="constant", **options)
        training.train(resume_from_checkpoint=start)
        ends.append(model.state_dict())
    assert all(torch.equal(tensor, ends[2][name]) for name, tensor in ends[0].items())
    training.save_model(str(tmp_path / "trained"))
    again = HatForConditionalGeneration.from_pretrained(tmp_path / "trained")
    assert all(torch.equal(tensor, ends[2][name]) for name, tensor in again.state_dict().items())
    assert from_huggingface(tmp_path / "trained").arguments["vocab_size"] == 280
    assert {"modeling_hat.py", "layers.py", "tokenizer.json"} < {path.name for path in (tmp_path / "trained").iterdir()}
    assert all(translate(again, tokenizer, [source for source, _ in pairs[:3]], max_length=5))
