"""A hub that cannot be reached is found out once, in seconds, and caches are used meanwhile."""

import shutil
import socket
import time

import pytest
from huggingface_hub import constants

from freezetrain import hub_network
from freezetrain.errors import UserError
from freezetrain.hub_network import offline_unless_reachable, why_offline
from freezetrain.models import load_model, load_tokenizer
from freezetrain.recipe.sources import ModelSource


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Online, as far as settings say, with an empty cache; sets where the hub is."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_network, "_PATIENCE", 0.3)
    return lambda port: monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.fixture
def silent():
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return port


def test_a_hub_that_does_not_answer(hub, silent):
    hub(silent)
    before = time.monotonic()
    assert f"127.0.0.1:{silent} cannot be reached" in str(why_offline())
    assert why_offline() == why_offline(), "asked once"
    assert time.monotonic() - before < 5


def test_an_id_that_is_nowhere(hub, closed):
    hub(closed)
    with pytest.raises(UserError, match=r"'some/one': .*cache.* does not hold it, and .* refused"):
        load_tokenizer(ModelSource("some/one"))


def test_a_cached_id_is_loaded_without_a_network(hub, closed, model_folder, tmp_path):
    hub(closed)
    kept = tmp_path / "cache" / "models--some--one"
    shutil.copytree(model_folder, kept / "snapshots" / ("a" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    source = ModelSource("some/one")
    assert load_model(source).config.hidden_size == 16
    assert len(load_tokenizer(source)) == 400
    assert not constants.HF_HUB_OFFLINE, "as it was"


def test_libraries_are_offline_inside_alone(hub, closed):
    hub(closed)
    with offline_unless_reachable():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
