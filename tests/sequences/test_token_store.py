import shutil
from pathlib import Path

import numpy as np
import pytest

from freezetrain.data.tokens import TokenStore
from freezetrain.errors import UserError

DOCUMENTS = [[7, 8, 1], [9, 1], [5, 5, 5, 5, 1], [2, 1], [3, 4, 1]]
STREAM = [token for document in DOCUMENTS for token in document]
STARTS = [0, 3, 5, 10, 12]


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_every_range_reads_as_the_list_does(make_store, pieces):
    store = make_store(DOCUMENTS, pieces)
    assert len(store) == len(STREAM)
    for first in range(len(STREAM)):
        for last in range(first, len(STREAM) + 1):
            read = store.read(first, last)
            assert read.dtype == np.int64
            assert read.tolist() == STREAM[first:last]
            assert store.starts(first, last).tolist() == [s for s in STARTS if first <= s < last]
    places = np.arange(len(STREAM) + 2)
    before = [sum(s < place for s in STARTS) for place in places]
    assert store.starts_before(places).tolist() == before


def test_damaged_stores_are_refused(make_store, tmp_path):
    store = make_store(DOCUMENTS, 2)
    folder = tmp_path / "copied"
    shutil.copytree(Path(store._pieces[0].filename).parents[1], folder)
    tokens = folder / "00001" / "tokens.npy"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-4])
    with pytest.raises(UserError, match=r"damaged .*delete the folder"):
        TokenStore(folder, "xx")
    np.save(tokens, np.zeros(3, dtype=np.uint16))
    with pytest.raises(UserError, match=r"tokens in .* are \d+ and not the 15"):
        TokenStore(folder, "xx")
    tokens.write_bytes(whole)
    TokenStore(folder, "xx")
    (folder / "facts.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        TokenStore(folder, "xx")
