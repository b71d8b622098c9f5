import dataclasses
import json
import os
from contextlib import contextmanager

# Of the commands that tests start: threads of two trainings at once mostly wait for each other. Read when torch is
# imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import onnx
import pytest
import torch

from predictors.devices import DEVICES
from predictors.engines import ENGINES
from predictors.store import TABLES, Store

# The files that take longest begin first, so that no process is left alone with one of them at the end. test_training
# forks, which torch refuses once gradients were checkpointed in a process, as other files do.
FIRST = (
    "test_specialize",
    "test_training",
    "test_cli",
    "test_wheel",
    "test_translation",
    "test_resume",
    "test_engines",
    "test_deployer",
)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks on busy machines: threads cost more than they give."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    """What tests find out about image files is not kept in the user's cache folder."""
    monkeypatch.setenv("SUPERNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


class Simulation:
    """An engine that makes up times: a network's latency in ms is the size of its weights in MB, or what `ms` says.

    Files run in this process. `asked` lists the calls: (method, file or key).
    """

    def __init__(self):
        self.asked = []
        self.ms = lambda source, confirms: size_of(source) / 1e6
        self.reference_ms = 1.0
        self.opens = lambda source: None  # may raise NetworkError, as where the machine is lost
        self.memory = lambda source: 50e6
        self.cpu = "a simulated CPU"

    @contextmanager
    def engine(self, device, fixed=True):
        loaded, opened = {}, []

        def call(method, *arguments):
            self.asked.append((method, *arguments[:1]))
            if method == "fingerprint":
                return device.fingerprint() | {"cpu": self.cpu, "layout": "fixed" if fixed else "random"}
            if method == "load":
                key, source = arguments
                reference = key.startswith("copy ")
                loaded[key] = self.reference_ms if reference else self.ms(source, not fixed)
            if method == "time":
                return (loaded[arguments[0]],) * device.runs
            if method == "open":
                self.opens(arguments[0])
                opened[:] = [device.open(arguments[0])]
            if method == "run":
                return opened[0](*arguments)
            if method == "memory":
                return self.memory(arguments[0])
            return None

        yield call

    def count(self, method):
        """How often a method was called."""
        return sum(asked == method for asked, *_ in self.asked)


def size_of(source):
    """The bytes of the weights in ONNX files, or of the parameters of a (module, inputs)."""
    if isinstance(source, tuple):
        return sum(p.nbytes for p in source[0].parameters())
    files = [source] if source.is_file() else source.glob("*.onnx")
    return sum(len(tensor.raw_data) for file in files for tensor in onnx.load(file).graph.initializer)


@pytest.fixture
def simulation(monkeypatch):
    """A `Simulation` as the engine "simulated"."""
    made = Simulation()
    monkeypatch.setitem(ENGINES, "simulated", made.engine)
    return made


QUICK = {"warmup": 0, "rounds": 4, "runs": 5, "spacing": 0.0, "sessions": 2}


@pytest.fixture(scope="session")
def quick_device(tmp_path_factory):
    """(name, other fields) -> the file of a device that measures as little as is allowed."""

    def write(name, **fields):
        folder = tmp_path_factory.mktemp("device")
        described = dataclasses.asdict(DEVICES[name]) | QUICK | fields
        described = {key: list(value) if isinstance(value, tuple) else value for key, value in described.items()}
        (folder / f"{name}.yaml").write_text(json.dumps(described))
        return str(folder / f"{name}.yaml")

    return write


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of exported files, so that the tests of a module export a network once."""
    return str(tmp_path_factory.mktemp("exported"))


@pytest.fixture
def recorded():
    """(path of a store) -> {table: number of records}."""

    def count(path):
        with Store(path) as store:
            return {table: len(store.records(table)) for table in TABLES}

    return count
