"""One thread: the models are so tiny that threads cost more than they give."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(global_state):
    """`global_state` puts back what was."""
    torch.set_num_threads(1)
