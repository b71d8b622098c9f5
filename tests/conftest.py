import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks on busy machines: threads cost more than they give."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    """What tests find out about image files is not kept in the user's cache folder."""
    monkeypatch.setenv("SUPERNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
