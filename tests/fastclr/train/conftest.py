from pathlib import Path

import pytest
import torch
from support.tiny_run import write_tiny_file, write_tiny_recipe

from fastclr.config import Config
from fastclr.recipes import load_recipe


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory) -> Path:
    return write_tiny_file(tmp_path_factory.mktemp("data") / "tiny.beton")


@pytest.fixture
def tiny_config(tmp_path) -> Config:
    return load_recipe(str(write_tiny_recipe(tmp_path / "tiny.toml")))


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are tiny here: several threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
