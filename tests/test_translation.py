"""Translation networks through the verbs: specialize, evaluate, export."""

import json
import math

import pytest
import torch

import hat
from recipes import bench, closed_loop, sampling
from recipes.benches import open_bench
from recipes.evaluate import evaluate
from recipes.export import export
from recipes.specialize import specialize
from supernet.evaluation import evaluate_network
from supernet.saving import load, save

DATA = {
    "class_path": "hat.ParallelText",
    "init_args": {"vocab_size": 300, "max_length": 60, "beam": 2},
}
SPACE = dict(
    embed_dim=(16, 24),
    ffn_embed_dim=(16, 32),
    heads=(2, 4),
    encoder_layer_num=(2,),
    decoder_layer_num=(1, 2),
    arbitrary_ende_attn=(-1, 1),
)
FEW = dict(latency_samples=5, accuracy_samples=5, finalists=1, population=12, generations=3)


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    """Final files, and processes that load them, take seconds each; that all goes on is the images' test."""
    monkeypatch.setattr(closed_loop, "ROUNDS", 1)
    monkeypatch.setattr(closed_loop, "REFITS", 1)
    monkeypatch.setattr(sampling, "ASKED", 1)
    monkeypatch.setattr(bench, "VISITS", 1)
    monkeypatch.setattr(bench, "CHECKED", 1)
    monkeypatch.setattr(bench, "AGREE", math.inf)


@pytest.fixture(scope="module")
def text():
    return hat.ParallelText(**DATA["init_args"])


@pytest.fixture(scope="module")
def folder(text, tmp_path_factory):
    """An untrained supernet's folder."""
    torch.manual_seed(0)
    network = hat.Transformer(hat.transformer_space(**SPACE), vocab_size=300, qkv_dim=16, max_positions=60)
    network.input_spec = dict(text.input_spec)
    return save(network, tmp_path_factory.mktemp("run") / "supernet", data=DATA)


def test_what_is_timed_of_a_sentence_changes_no_accuracy_and_the_table_of_positions_the_files(folder, tmp_path):
    paths = str(tmp_path / "store.sqlite"), str(tmp_path / "files")
    with open_bench(str(folder), "onnxruntime", None, *paths, "process") as opened:
        config, supernet = opened.supernet.space.smallest(), opened.supernet

        def names():
            return opened._network(config, "final", ()), opened._network(config, "", (), timed=False)

        files, network = names()
        supernet.input_spec["beam"] = 3
        longer, same = names()
        assert longer != files and same == network
        supernet.arguments["max_positions"] = 70
        assert names()[0] != longer and names()[1] == network


@pytest.mark.parametrize("device", ["onnxruntime", "onnxruntime-int8", pytest.param("torch", marks=pytest.mark.slow)])
def test_the_winner_meets_the_budget_and_is_the_best_of_all(folder, tmp_path, device):
    out = tmp_path / "out"
    report = specialize(str(folder), max_latency=500.0, out=str(out), device=device, **FEW)
    assert report["figure"] == "loss" and report["confirmed_ms"] <= 500
    best = min(network["loss"] for network in report["samples"] + report["finalists"])
    assert best in [final["loss"] for final in report["finalists"]]
    assert {"encoder.onnx", "decoder.onnx", "run.json"} < {path.name for path in out.iterdir()}
    assert sum(p.numel() for p in load(out).parameters()) == report["params"]


def test_the_files_are_evaluated_as_the_network_is(folder, text, tmp_path):
    report = specialize(str(folder), max_latency=500.0, out=str(tmp_path / "out"), device="onnxruntime", **FEW)
    expected = evaluate_network(load(tmp_path / "out"), text.test_dataloader())
    assert report["test"] == pytest.approx(expected, rel=1e-4)


def test_direct_search_evaluates_no_network_twice_and_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    evaluated, original = [], bench.evaluate_network

    def evaluating(network, *arguments):
        evaluated.append(network.config)
        if len(evaluated) == 20 and not (tmp_path / "interrupted").exists():
            (tmp_path / "interrupted").touch()
            raise KeyboardInterrupt
        return original(network, *arguments)

    monkeypatch.setattr(bench, "evaluate_network", evaluating)
    options = dict(device="onnxruntime", search="direct", store=str(tmp_path / "store.sqlite"), **FEW)
    with pytest.raises(KeyboardInterrupt):
        specialize(str(folder), max_latency=500.0, out=str(tmp_path / "out"), **options)
    interrupted = evaluated.pop()
    specialize(str(folder), max_latency=500.0, out=str(tmp_path / "out"), **options)
    assert interrupted in evaluated and len(evaluated) == len(set(evaluated))


def test_evaluate_gives_loss_perplexity_and_bleu_of_an_inherited_subnet(folder):
    figures = evaluate(str(folder), architecture="smallest", split="test")
    assert figures["perplexity"] == pytest.approx(torch.tensor(figures["loss"]).exp().item())
    assert 0 <= figures["low"] <= figures["high"] <= 100 and "tok:13a" in figures["signature"]
    assert 0 <= figures["chrf_low"] <= figures["chrf_high"] <= 100 and "nc:6|nw:0" in figures["chrf_signature"]
    assert figures["beam"] == 2 and figures["early_stopping"] is False


def test_evaluate_scores_with_the_tokenizer_and_the_search_that_are_asked_for(folder):
    pytest.importorskip("sacrebleu")
    few = dict(architecture="smallest", split="test", beam=2)
    figures = evaluate(str(folder), tokenize="char", early_stopping=True, **few)
    assert "tok:char" in figures["signature"] and figures["early_stopping"] is True
    with pytest.raises(ValueError, match="tokenize: 'mecab' is not one of"):
        evaluate(str(folder), tokenize="mecab", **few)


def test_evaluate_compares_two_networks_with_the_search_that_is_asked_for(folder, tmp_path):
    save(load(folder).extract().eval(), tmp_path / "largest", data=DATA)
    few = dict(architecture="smallest", split="test", beam=1, length_penalty=1.0)
    figures = evaluate(str(folder), against=str(tmp_path / "largest"), **few)
    assert figures["beam"] == 1 and figures["length_penalty"] == 1.0
    for name in ("difference", "chrf_difference"):
        assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"]
    with pytest.raises(ValueError, match="beam = 0: at least 1"):
        evaluate(str(folder), architecture="smallest", beam=0)


def test_two_vocabularies_are_not_for_text_of_one(text):
    space = hat.transformer_space(**SPACE)
    network = hat.Transformer(space, vocab_size=300, target_vocab_size=260, share_embeddings=False, qkv_dim=16)
    with pytest.raises(ValueError, match="target_vocab_size = 260, the tokenizer has 300"):
        network.check_data(text.input_spec)


def test_export_writes_hugging_face_and_onnx(folder, text, tmp_path):
    written = export(str(folder), str(tmp_path / "out"), format="huggingface,onnx", architecture="largest")
    names = {path.name for path in written["huggingface"].iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "modeling_hat.py"} < names
    written_onnx = {path.name for path in written["onnx"].iterdir()}
    assert written_onnx > {"encoder.onnx", "decoder.onnx", "run.json", "metadata.json"}


def test_formats_of_the_other_family_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="timm is for MobileNetV3, and .* is a Transformer"):
        export(str(folder), str(tmp_path / "out"), format="timm", architecture="largest")


def test_a_config_from_a_file_is_the_subnet_that_is_cut(folder, tmp_path):
    config = load(folder).space.smallest()
    (tmp_path / "config.json").write_text(json.dumps({"config": vars(config)}))
    assert evaluate(str(folder), architecture=str(tmp_path / "config.json"))["loss"] > 0
    (tmp_path / "config.json").write_text(json.dumps({"config": vars(config) | {"encoder_embed_dim": 17}}))
    with pytest.raises(ValueError, match="encoder_embed_dim = 17"):
        evaluate(str(folder), architecture=str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(json.dumps({"encoder_embed_dim": 48}))
    with pytest.raises(ValueError, match="it lacks decoder_arbitrary_ende_attn, "):
        evaluate(str(folder), architecture=str(tmp_path / "config.json"))
    with pytest.raises(ValueError, match="'middle' is neither largest nor smallest, and no file"):
        evaluate(str(folder), architecture="middle")


def test_a_tokenizer_that_is_not_the_networks_is_refused(folder, tmp_path):
    for vocab_size, message in ((310, "vocab_size = 300, the tokenizer has 310"), (300, "tokenizer is not the one")):
        data = {"class_path": "hat.ParallelText", "init_args": DATA["init_args"] | {"vocab_size": vocab_size}}
        if vocab_size == 300:
            data["init_args"] |= {"source": "de", "target": "en", "dataset": str(german_only(tmp_path))}
        (tmp_path / "data.json").write_text(json.dumps(data))
        with pytest.raises(ValueError, match=message):
            evaluate(str(folder), architecture="largest", data=str(tmp_path / "data.json"))


def german_only(tmp_path):
    """A folder of other text than the numbers of DATA."""
    lines = [f"{a} und {b} sind nicht {b}{a}\tso ist es, {a}{b}" for a in "abcdefgh" for b in "ijklmnop"]
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_network_with_fewer_positions_than_the_data_is_refused(tmp_path, text):
    network = hat.Transformer(hat.transformer_space(**SPACE), vocab_size=300, qkv_dim=16, max_positions=20)
    save(network, tmp_path / "supernet", data=DATA)
    with pytest.raises(ValueError, match="20 positions, the data have sentences of up to 60"):
        evaluate(str(tmp_path / "supernet"), architecture="largest")
