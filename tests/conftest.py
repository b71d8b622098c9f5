import os

# Of the commands that tests start: threads of two trainings at once mostly wait for each other. Read when torch is
# imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

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
