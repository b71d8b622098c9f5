import csv
import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from predictors.store import FIGURES, Store, digest, network_id


@dataclasses.dataclass(frozen=True)
class Config:
    depth: tuple
    resolution: float


DEVICE = {"name": "board", "cpus": [0]}
FAILED = {"reasons": ["slow"], "taken": "now", "device": DEVICE}


def figures(i=0.0):
    return {"accuracy": i, "loss": 1.0}


def test_records_of_a_key_come_back_in_order(tmp_path):
    with Store(tmp_path / "store") as store:
        for i in range(3):
            store.add("failure", ("network", "device"), FAILED | {"reasons": [str(i)]})
        store.add("failure", ("other", "device"), FAILED)
    with Store(tmp_path / "store") as store:
        found = store.get("failure", [("network", "device"), ("network", "elsewhere"), ("nothing", "device")])
    assert found == {("network", "device"): [FAILED | {"reasons": [str(i)]} for i in range(3)]}


def test_names_come_back_as_they_were(tmp_path):
    latency = dict.fromkeys(FIGURES, 0.5) | {"rounds": 8, "runs": 8, "taken": "now", "device": DEVICE}
    names = ["", "a" * 64, "A" * 64, "{half", "[]", "ä", digest("x")]
    with Store(tmp_path / "store") as store:
        for name in names:
            store.add("latency", (name, "device"), latency | {"reference": name})
        found = store.get("latency", [(name, "device") for name in names])
        assert found == {(name, "device"): [latency | {"reference": name}] for name in names}


def test_missing_are_the_keys_without_a_record(tmp_path):
    with Store(tmp_path / "store") as store:
        keys = [(f"network{i}", "weights", "data") for i in range(1000)]
        for key in keys[::100]:
            store.add("accuracy", key, figures(0.9))
        assert store.missing("accuracy", keys + keys) == [key for i, key in enumerate(keys) if i % 100]
        assert store.missing("accuracy", []) == []


def test_accuracy_does_not_leak_between_weights_or_data(tmp_path):
    with Store(tmp_path / "store") as store:
        store.add("accuracy", ("network", "weights", "data"), figures(0.9))
        assert len(store.missing("accuracy", [("network", "others", "data"), ("network", "weights", "others")])) == 2


def test_a_key_of_the_wrong_length_or_a_nan_is_refused(tmp_path):
    with Store(tmp_path / "store") as store:
        with pytest.raises(ValueError, match="network_id"):
            store.add("latency", ("network",), {})
        with pytest.raises(ValueError, match="accuracy = nan is NaN or infinite"):
            store.add("accuracy", ("network", "weights", "data"), figures(float("nan")))
        with pytest.raises(ValueError, match="a record of accuracy has accuracy, loss, not accuracy"):
            store.add("accuracy", ("network", "weights", "data"), {"accuracy": 0.9})
        assert store.missing("accuracy", [("network", "weights", "data")]) == [("network", "weights", "data")]


WRITE = """
import sys
from predictors.store import Store
with Store(sys.argv[1]) as store:
    for i in range(int(sys.argv[3])):
        store.add("failure", (f"{sys.argv[2]}-{i}", "device"), {"reasons": [], "taken": "now", "device": {}})
        print(i, flush=True)
"""


def writer(path, name, n):
    command = [sys.executable, "-c", WRITE, str(path), name, str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(os.path.dirname(__file__)))


def test_several_processes_may_make_and_write_one_store(tmp_path):
    writers = [writer(tmp_path / "store", f"w{k}", 20) for k in range(4)]
    assert [w.communicate() and w.returncode for w in writers] == [0] * 4
    with Store(tmp_path / "store") as store:
        assert len(store.get("failure", [(f"w{k}-{i}", "device") for k in range(4) for i in range(20)])) == 80


def test_a_store_that_another_process_is_making_is_waited_for(tmp_path):
    making = sqlite3.connect(tmp_path / "store", isolation_level=None, check_same_thread=False)
    making.execute("BEGIN IMMEDIATE")
    made = threading.Timer(0.2, making.rollback)
    made.start()
    with Store(tmp_path / "store") as store:
        assert store.first("accuracy", [("network", "weights", "data")]) is None
    made.join()
    making.close()


def test_what_add_returned_from_survives_kill_9(tmp_path):
    process = writer(tmp_path / "store", "w", 1_000_000)
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    last = int(process.communicate()[0].split()[-1])
    with Store(tmp_path / "store") as store:
        assert store.missing("failure", [(f"w-{i}", "device") for i in range(last + 1)]) == []


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database\n" * 100)
    with pytest.raises(ValueError, match="notes.txt"):
        Store(path)
    assert path.read_text() == "not a database\n" * 100


def test_another_database_is_named_and_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE latency (network_id, device_id, record)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match="other.sqlite .* not a store"):
        Store(path)
    assert path.read_bytes() == before


def test_a_damaged_store_is_an_error_at_opening(tmp_path):
    path = tmp_path / "store"
    with Store(path) as store:
        for i in range(100):
            store.add("failure", (f"network{i}", "device"), FAILED | {"reasons": ["x" * 500]})
    data = bytearray(path.read_bytes())
    start = data.index(b"x" * 500)
    data[start : start + 8000] = bytes(8000)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="store is damaged"):
        Store(path)


def test_tables_that_were_changed_are_an_error(tmp_path):
    path = tmp_path / "store"
    Store(path).close()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"mb REAL", b"mb RFAL"))  # which SQLite takes for a type
    with pytest.raises(ValueError, match="store is damaged: its tables"):
        Store(path)


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path):
    path, keys = tmp_path / "store", [(f"network{i}", "device", f"kind{i % 3}") for i in range(40)]
    with Store(path) as store:
        for i, key in enumerate(keys):
            store.add("footprint", key, {"mb": i / 7})
        expected = store.get("footprint", keys)
    whole, found = path.read_bytes(), 0
    rng = np.random.default_rng(0)
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))  # most of the pages is empty
    for place in rng.choice(used, 300, replace=False):
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            with Store(path) as store:
                assert store.get("footprint", keys) == expected
        except (ValueError, OSError) as error:
            found += 1
            assert str(path) in str(error)
    assert found > 200


def test_a_store_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="/proc/store: unable to open"):
        Store("/proc/store")
    path = tmp_path / "store"
    with Store(path) as store:
        store.add("failure", ("network", "device"), FAILED)
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options)
    )
    with Store(path) as store:
        with pytest.raises(OSError, match="store: attempt to write a readonly database"):
            store.add("failure", ("network", "device"), FAILED)
        assert len(store.get("failure", [("network", "device")])) == 1


def test_a_store_that_is_closed_is_not_called_damaged(tmp_path):
    store = Store(tmp_path / "store.sqlite")
    store.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        store.get("accuracy", [("network", "weights", "data")])


def test_another_version_is_an_error(tmp_path):
    with Store(tmp_path / "store"):
        pass
    with sqlite3.connect(tmp_path / "store") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ValueError, match="store is a store of version 99"):
        Store(tmp_path / "store")


def test_a_store_of_an_earlier_version_gets_the_tables_that_were_added(tmp_path):
    key, record = ("network", "weights", "data"), {"accuracy": 0.5, "loss": 1.0}
    with Store(tmp_path / "store") as store:
        store.add("accuracy", key, record)
    with sqlite3.connect(tmp_path / "store") as database:
        for table in ("search", "metric", "metric_items"):  # of versions 9 and 10
            database.execute(f"DROP TABLE {table}")
        database.execute("PRAGMA user_version = 8")
    database.close()
    with Store(tmp_path / "store") as store:
        store.add("search", ("id",), {"found": [[1.0]]})
        store.add("metric", (*key, "top5"), {"mean": 0.9})
    with Store(tmp_path / "store") as store:
        assert store.get("accuracy", [key]) == {key: [record]}
        assert store.get("search", [("id",)]) == {("id",): [{"found": [[1.0]]}]}


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        Store(tmp_path / "nowhere" / "store")


def test_a_network_is_identified_by_what_shapes_it():
    one = network_id("mobilenet_v3", {"width_mult": 1.0, "num_classes": 10}, Config((2, 3), 32))
    assert one == network_id("mobilenet_v3", {"num_classes": 10, "width_mult": 1}, Config([2, 3], 32.0))
    assert one != network_id("mobilenet_v3", {"width_mult": 1.2, "num_classes": 10}, Config((2, 3), 32))
    assert one != network_id("mobilenet_v3", {"width_mult": 1, "num_classes": 10}, Config((2, 3), 48))
    assert one != network_id("proxyless", {"width_mult": 1, "num_classes": 10}, Config((2, 3), 32))


def test_a_digest_is_canonical():
    assert digest({"a": [1.0, "x"], "b": None}) == digest({"b": None, "a": (1, "x")})
    assert digest(["1"]) != digest([1])


def test_records_are_found_by_a_part_of_their_key(tmp_path):
    with Store(tmp_path / "x") as store:
        for network, device in (("a", "d"), ("b", "d"), ("a", "e")):
            store.add("failure", (network, device), FAILED | {"reasons": [network, device]})
        assert [r["reasons"] for r in store.records("failure", device_id="d")] == [["a", "d"], ["b", "d"]]
        assert len(store.records("failure")) == 3 and store.records("failure", device_id="x") == []
        with pytest.raises(ValueError, match="no column"):
            store.records("failure", place="x")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_written_with_its_keys(tmp_path, suffix):
    with Store(tmp_path / "store.sqlite") as store:
        for i in range(3):
            store.add("accuracy", (f"{i:064x}", "weights", "data"), {"accuracy": i / 4, "loss": 1.0})
        store.add(
            "failure", ("network", "device"), {"reasons": ["a, b", "c"], "taken": "now", "device": {"threads": 1}}
        )
        if suffix == ".parquet":
            pyarrow = pytest.importorskip("pyarrow.parquet")
            read = lambda path: pyarrow.read_table(path).to_pylist()  # noqa: E731
        else:
            read = lambda path: list(csv.DictReader(path.read_text().splitlines()))  # noqa: E731
        assert store.write("accuracy", tmp_path / f"a{suffix}") == 3
        rows = read(tmp_path / f"a{suffix}")
        assert list(rows[0]) == ["network_id", "weights_id", "data_id", "accuracy", "loss"]
        assert [(row["network_id"], float(row["accuracy"])) for row in rows] == [(f"{i:064x}", i / 4) for i in range(3)]
        store.write("failure", tmp_path / f"f{suffix}")
        (row,) = read(tmp_path / f"f{suffix}")
        assert json.loads(row["reasons"]) == ["a, b", "c"] and json.loads(row["device"]) == {"threads": 1}


def test_a_table_that_cannot_be_written_is_told(tmp_path):
    with Store(tmp_path / "store.sqlite") as store:
        for table, name in (("latencies", "x.csv"), ("latency", "x.xls")):
            with pytest.raises(ValueError, match="a table is one of latency, .*, a file .csv or .parquet"):
                store.write(table, tmp_path / name)
