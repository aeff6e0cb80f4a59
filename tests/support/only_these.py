"""Hides all packages but those that pip would have installed with the distributions named."""

import importlib.metadata as metadata
import re
import sys


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed_with(names: list[str]) -> set[str]:
    """The distributions themselves and all that they require, without extras."""
    waiting, found = [*map(_plain, names)], set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another system
            continue
        waiting += [
            _plain(re.match(r"[\w.-]+", line).group()) for line in lines if "extra ==" not in line
        ]
    return found


class _Hiding:
    """A finder that neither sees other modules nor their metadata, which some libraries look at."""

    def __init__(self, finder, visible: set[str], owners: dict[str, set[str]]) -> None:
        self.finder, self.visible, self.owners = finder, visible, owners

    def find_spec(self, name, path=None, target=None):
        if not self.owners.get(name.partition(".")[0], self.visible) & self.visible:
            return None
        return self.finder.find_spec(name, path, target)

    def find_distributions(self, *context):
        find = getattr(self.finder, "find_distributions", lambda *_: ())
        return [each for each in find(*context) if _plain(each.metadata["Name"]) in self.visible]

    def __getattr__(self, name):
        return getattr(self.finder, name)


def only(names: list[str]) -> None:
    """From now on in this process nothing else can be imported, but for Python's own modules."""
    visible = _installed_with(names) | {"freezetrain"}
    owners = {top: set(map(_plain, of)) for top, of in metadata.packages_distributions().items()}
    del owners["freezetrain"]
    sys.meta_path[:] = [_Hiding(finder, visible, owners) for finder in sys.meta_path]
