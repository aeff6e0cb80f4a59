"""Set expressions over named regions, such as ``core - zh`` or ``(ja & ko) | "pt-BR"``."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from freezetrain.errors import UserError, near_misses
from freezetrain.regions.region import Region

# As Python ranks its operators: those of a later line bind tighter; all group from the left.
_OPERATORS: tuple[dict[str, Callable[[Region, Region], Region]], ...] = (
    {"|": lambda a, b: a | b},
    {"^": lambda a, b: a ^ b},
    {"&": lambda a, b: a & b},
    {"-": lambda a, b: a - b},
)

_BARE = r"[\w.+@]+"  # a name that needs no quotes

_TOKEN = re.compile(rf"""\s*(?:(?P<sign>[|^&()-])|(?P<quoted>"[^"]*"|'[^']*')|(?P<name>{_BARE}))""")

_IN_QUOTES = "; put a name with other signs in quotes"


@dataclass(frozen=True)
class _Name:
    name: str
    place: int  # from 1


@dataclass(frozen=True)
class _Both:
    combine: Callable[[Region, Region], Region]
    left: "_Name | _Both"
    right: "_Name | _Both"


class Expression:
    """``| & - ^`` of sets and parentheses, as Python ranks them, over names of regions.

    A name holds letters, digits and ``_ . + @``; in quotes it may hold anything. So ``core-zh``
    is a difference, and ``"pt-BR"`` a name.

    Raises:
        UserError: what is no such expression; the message says where.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens = _tokens(text)
        self._tree = self._level(0)
        if self._next[0] != "end":
            raise self._expected("an operator (| & - ^) or the end")

    @property
    def names(self) -> list[str]:
        """Names in it, each once, in order."""
        return list(dict.fromkeys(leaf.name for leaf in _leaves(self._tree)))

    def check(self, known: Iterable[str]) -> None:
        """UserError, with place and near misses, for the first name that is not ``known``."""
        known = list(known)
        quoted = "" if all(re.fullmatch(_BARE, name) for name in known) else _IN_QUOTES
        for leaf in _leaves(self._tree):
            if leaf.name not in known:
                raise UserError(
                    f"expected the name of a region at character {leaf.place} of {self.text!r}, "
                    f"got {leaf.name!r}{near_misses(leaf.name, known)}; there are "
                    f"{', '.join(known) or 'none'}{quoted}"
                )

    def region(self, regions: Callable[[str], Region]) -> Region:
        """What the expression gives; ``regions`` is asked once for each of ``names``.

        UserError as of :class:`Region`'s operators.
        """
        named = {name: regions(name) for name in self.names}

        def value(node: _Name | _Both) -> Region:
            if isinstance(node, _Name):
                return named[node.name]
            return node.combine(value(node.left), value(node.right))

        found = value(self._tree)
        made = {
            "operation": "expression",
            "expression": self.text,
            "regions": {
                name: {"digest": region.digest, "made": region.made}
                for name, region in named.items()
            },
        }
        return Region(found, found.base, made)

    @property
    def _next(self) -> tuple[str, str, int]:
        return self._tokens[0]

    def _level(self, level: int) -> _Name | _Both:
        """Operands of one rank of operators, combined from the left."""
        if level == len(_OPERATORS):
            return self._operand()
        left = self._level(level + 1)
        while self._next[0] == "sign" and (combine := _OPERATORS[level].get(self._next[1])):
            self._tokens.pop(0)
            left = _Both(combine, left, self._level(level + 1))
        return left

    def _operand(self) -> _Name | _Both:
        kind, token, place = self._next
        if kind == "name":
            self._tokens.pop(0)
            return _Name(token, place)
        if token != "(":
            raise self._expected("the name of a region or (")
        self._tokens.pop(0)
        inside = self._level(0)
        if self._next[1] != ")":
            raise self._expected("an operator (| & - ^) or )")
        self._tokens.pop(0)
        return inside

    def _expected(self, what: str) -> UserError:
        kind, token, place = self._next
        got = "its end" if kind == "end" else repr(token)
        return UserError(f"expected {what} at character {place} of {self.text!r}, got {got}")


def _tokens(text: str) -> list[tuple[str, str, int]]:
    """(``name``, ``sign`` or ``end``; the token; its place, from 1)."""
    tokens = []
    place = 0
    while place < len(text.rstrip()):
        found = _TOKEN.match(text, place)
        if not found:
            rest = text[place:].lstrip()
            raise UserError(
                f"expected names of regions, | & - ^ and parentheses, got {rest[0]!r} at character "
                f"{len(text) - len(rest) + 1} of {text!r}{_IN_QUOTES}"
            )
        kind = str(found.lastgroup)
        token = found[kind]
        if kind == "quoted":
            kind, token = "name", token[1:-1]
        tokens.append((kind, token, found.start(str(found.lastgroup)) + 1))
        place = found.end()
    return [*tokens, ("end", "", len(text) + 1)]


def _leaves(node: _Name | _Both) -> list[_Name]:
    return [node] if isinstance(node, _Name) else _leaves(node.left) + _leaves(node.right)
