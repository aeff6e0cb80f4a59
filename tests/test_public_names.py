"""Names that are loaded on first use are there, and are what their modules define."""

from importlib import import_module

import pytest


@pytest.mark.parametrize("package", ["freezetrain", "freezetrain.evaluation"])
def test_every_public_name_is_there(package):
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module._HOMES) <= set(module.__all__)
    for name, home in module._HOMES.items():
        assert getattr(module, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018
