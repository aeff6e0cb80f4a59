"""What libraries say that nobody can act on is kept back, and nothing else is."""

import logging
import warnings

import pytest

from freezetrain import remarks
from freezetrain.user_files import VERBOSE

KEPT_BACK = (
    "The dirpath has changed from 'a' to 'b', therefore `best_model_score` won't be reloaded.",
    "`torch.distributed.all_gather_into_tensor` is deprecated. Please use another.",
    "The 'train_dataloader' does not have many workers which may be a bottleneck.",
)
SHOWN = ("the disk is nearly full", "Found 3 module(s) that cannot be trained", "deprecated")


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    """What `keep_back` changes is put back."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        levels = {name: logging.getLogger(name).level for name in remarks._QUIET}
        for name in levels:
            logging.getLogger(name).setLevel(logging.NOTSET)
        deepspeed = logging.getLogger("DeepSpeed")
        monkeypatch.setattr(deepspeed, "propagate", True)
        monkeypatch.setattr(deepspeed, "filters", [])
        yield
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def say(caplog) -> tuple[list[str], list[str]]:
    """What comes through of warnings, and of what is logged."""
    caplog.set_level(logging.INFO)
    with warnings.catch_warnings(record=True) as caught:
        for message in (*KEPT_BACK, *SHOWN):
            warnings.warn(message, FutureWarning, stacklevel=1)
    logging.getLogger("DeepSpeed").warning("Setting accelerator to CPU. If you have GPU ...")
    logging.getLogger("DeepSpeed").warning("the loss scale cannot be lowered")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").info("GPU available: False")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").warning("no space left")
    return [str(warning.message) for warning in caught], [r.message for r in caplog.records]


def test_only_what_is_listed_is_kept_back(caplog):
    remarks.keep_back()
    remarks.keep_back()
    warned, logged = say(caplog)
    assert warned == list(SHOWN)
    assert logged == ["the loss scale cannot be lowered", "no space left"]


def test_verbose_shows_all(caplog, monkeypatch):
    monkeypatch.setenv(VERBOSE, "1")
    remarks.keep_back()
    warned, logged = say(caplog)
    assert warned == [*KEPT_BACK, *SHOWN]
    assert len(logged) == 4


def test_what_is_printed_besides_follows(capsys):
    with remarks.printed_kept_back():
        print("DeepSpeed deepspeed.ops.comm.deepspeed_shm_comm_op built successfully")
        print("something else")
    assert capsys.readouterr().out == "something else\n"
