"""Translation networks through the verbs: specialize, evaluate, export."""

import json

import pytest
import torch

import hat
import recipes.specialize
from recipes.bleu import bleu
from recipes.evaluate import evaluate
from recipes.export import export
from recipes.lab import sampling
from recipes.lab.keys import network_key
from recipes.values import RELEASE
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


@pytest.fixture
def find(folder, quick_device, exported, tmp_path, simulation, monkeypatch):
    """specialize to the folder `out`, in one round: exporting a translation network takes seconds."""
    monkeypatch.setattr(recipes.specialize, "ROUNDS", 1)
    monkeypatch.setattr(recipes.specialize, "SEARCHES_PER_ROUND", 1)
    monkeypatch.setattr(sampling, "PROXY_CHECKS", 1)
    few = {"latency_samples": 5, "accuracy_samples": 5, "finalists": 1, "population": 12, "generations": 3}
    few |= {"engine": "simulated", "workers": 1, "files": exported, "store": str(tmp_path / "store.sqlite")}

    def run(device="onnxruntime", out="out", **options):
        places = {"out": str(tmp_path / out), "device": quick_device(device)}
        return recipes.specialize.specialize(str(folder), max_latency=500.0, **(places | few | options))

    return run


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


def test_the_timed_lengths_and_the_table_of_positions_change_the_files_and_no_metric(folder):
    supernet = load(folder)
    config = supernet.space.smallest()

    def names():
        return network_key(supernet, config, RELEASE), network_key(supernet, config, timed=False)

    files, network = names()
    supernet.input_spec["beam"] = 3
    longer, same = names()
    assert longer != files and same == network
    supernet.arguments["max_positions"] = 70
    assert names()[0] != longer and names()[1] == network


@pytest.mark.parametrize("device", ["onnxruntime", "onnxruntime-int8", pytest.param("torch", marks=pytest.mark.slow)])
def test_the_winner_meets_the_budget_and_has_the_least_loss(find, tmp_path, device):
    report, out = find(device), tmp_path / "out"
    assert report.metric == "loss" and report.latency_ms <= 500
    samples, finalists = report.samples, [final["metrics"] for final in report.finalists]
    assert min(network["loss"] for network in samples + finalists) in [final["loss"] for final in finalists]
    files = set() if device == "torch" else {"encoder.onnx", "decoder.onnx", "run.json"}
    assert files | {"network.safetensors"} < {path.name for path in out.iterdir()}
    assert sum(p.numel() for p in load(out).parameters()) == report.params


def test_the_files_are_evaluated_as_the_network_is(find, text, tmp_path):
    report = find()
    expected = evaluate_network(load(tmp_path / "out"), text.test_dataloader())
    assert report.metrics["test"] == pytest.approx(expected, rel=1e-4)


def test_an_interrupted_search_that_evaluates_all_networks_continues_where_it_was(find, simulation, tmp_path, recorded):
    def interrupt(source):
        raise KeyboardInterrupt

    simulation.opens = interrupt  # after the search, when the first file is evaluated
    with pytest.raises(KeyboardInterrupt):
        find(score="evaluated")
    before = recorded(tmp_path / "store.sqlite")["accuracy"]
    simulation.opens = lambda source: None
    find(score="evaluated")
    assert before >= 12 and recorded(tmp_path / "store.sqlite")["accuracy"] == before


def test_evaluate_gives_loss_and_perplexity_of_an_inherited_subnet(folder, capsys):
    metrics = evaluate(str(folder), architecture="smallest", split="test")
    assert metrics["perplexity"] == pytest.approx(torch.tensor(metrics["loss"]).exp().item())
    assert f"supernet bleu --subnet {folder} --architecture smallest --split test" in capsys.readouterr().out


def test_bleu_translates_with_the_search_of_the_data(folder):
    scores = bleu(str(folder), architecture="smallest")
    assert 0 <= scores["low"] <= scores["high"] <= 100 and "tok:13a" in scores["signature"]
    assert 0 <= scores["chrf_low"] <= scores["chrf_high"] <= 100 and "nc:6|nw:0" in scores["chrf_signature"]
    assert scores["beam"] == 2 and scores["early_stopping"] is False


def test_bleu_has_the_tokenizer_and_the_search_that_are_asked_for(folder):
    few = dict(architecture="smallest", beam=2)
    scores = bleu(str(folder), tokenize="char", early_stopping=True, **few)
    assert "tok:char" in scores["signature"] and scores["early_stopping"] is True
    with pytest.raises(ValueError, match="tokenize: 'mecab' is not one of"):
        bleu(str(folder), tokenize="mecab", **few)


def test_bleu_compares_two_networks_with_one_search(folder, tmp_path):
    save(load(folder).extract().eval(), tmp_path / "largest", data=DATA)
    scores = bleu(str(folder), architecture="smallest", beam=1, length_penalty=1.0, against=str(tmp_path / "largest"))
    assert scores["beam"] == 1 and scores["length_penalty"] == 1.0
    for name in ("difference", "chrf_difference"):
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
    with pytest.raises(ValueError, match="beam = 0: at least 1"):
        bleu(str(folder), architecture="smallest", beam=0)
    with pytest.raises(ValueError, match="is not a saved subnet of a translation supernet"):
        bleu(str(folder), architecture="smallest", against=str(folder))


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
    with pytest.raises(ValueError, match="'middle' is not largest, smallest or the name of a file"):
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
