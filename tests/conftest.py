import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks on busy machines: threads cost more than they give."""
    torch.set_num_threads(1)
