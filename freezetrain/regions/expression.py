"""Set expressions over named regions, such as ``core - zh`` or ``(ja & ko) | "pt-BR"``."""

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from freezetrain.errors import UserError, near_misses
from freezetrain.regions.region import Region

_OPERATORS: dict[type[ast.operator], Callable[[Region, Region], Region]] = {
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
    ast.Sub: operator.sub,
}

_BARE = r"[\w.+@]+"  # a name that needs no quotes

_NAME = re.compile(rf"""(?P<quoted>"[^"]+"|'[^']+')|{_BARE}""")

_IN_QUOTES = "; put a name with other signs in quotes"

_LONGEST = 10_000  # characters of an expression

_MOST = 100  # names, operators, and parentheses, that one expression may have


class Expression:
    """``| & - ^`` of sets and parentheses, as Python ranks them, over names of regions.

    A name holds letters, digits and ``_ . + @``; in quotes it may hold anything. So ``core-zh``
    is a difference, and ``"pt-BR"`` a name. At most 100 names, operators and parentheses.

    Raises:
        UserError: what is no such expression; the message says where.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._names: dict[int, str] = {}  # place in the text, from 0 -> name
        if len(text) > _LONGEST:
            text = text[: _LONGEST + 1]  # refused below, without work on the rest
        # Python's parser sees an x in the place of each name, since names need not be Python's.
        line = re.sub(r"\s", " ", text)
        matches = list(islice(_NAME.finditer(text), _MOST + 1))
        signs = _NAME.sub("", text) if len(matches) <= _MOST else ""
        operators, parentheses = len(re.findall(r"[|^&-]", signs)), signs.count("(")
        if len(text) > _LONGEST or max(len(matches), operators, parentheses) > _MOST:
            raise UserError(
                f"expected an expression of at most {_LONGEST:,} characters and {_MOST} names, "
                f"operators and parentheses, got more of them in {text[:80]!r}…: combine some of "
                "the regions first"
            )
        for match in matches:
            quoted = bool(match["quoted"])
            place = match.start() + quoted
            self._names[place] = match[0][1:-1] if quoted else match[0]
            masked = (" x" if quoted else "x").ljust(len(match[0]))
            line = line[: match.start()] + masked + line[match.end() :]
        if other := re.search(r"[^ x|^&()-]", line):
            raise UserError(
                f"expected names of regions, | & - ^ and parentheses, got {other[0]!r} at "
                f"character {other.start() + 1} of {text!r}{_IN_QUOTES}"
            )
        self._indent = len(line) - len(line.lstrip())  # which Python's parser does not take
        try:
            self._tree = ast.parse(line.strip(), mode="eval").body
        except SyntaxError as error:
            raise self._unreadable(error.offset or len(line.lstrip()) + 1) from error
        for node in ast.walk(self._tree):
            if isinstance(node, ast.expr) and not isinstance(node, ast.Name | ast.BinOp):
                raise self._unreadable(node.col_offset + 1)

    @property
    def names(self) -> list[str]:
        """Names in it, each once, in order."""
        return list(dict.fromkeys(self._names.values()))

    def check(self, known: Iterable[str]) -> None:
        """UserError, with place and near misses, for the first name that is not ``known``."""
        known = list(known)
        quoted = "" if all(re.fullmatch(_BARE, name) for name in known) else _IN_QUOTES
        for place, name in self._names.items():
            if name not in known:
                raise UserError(
                    f"expected the name of a region at character {place + 1} of {self.text!r}, "
                    f"got {name!r}{near_misses(name, known)}; there are "
                    f"{', '.join(known) or 'none'}{quoted}"
                )

    def region(self, regions: Callable[[str], Region]) -> Region:
        """What the expression gives; ``regions`` is asked once for each of ``names``.

        UserError as of :class:`Region`'s operators.
        """
        named = {name: regions(name) for name in self.names}
        combined = self._combined(self._tree, named)
        made = {
            "operation": "expression",
            "expression": self.text,
            "regions": {
                name: {"digest": region.digest, "made": region.made}
                for name, region in named.items()
            },
        }
        return Region(combined, combined.base, made)

    def _combined(self, node: ast.expr, named: Mapping[str, Region]) -> Region:
        if isinstance(node, ast.BinOp):
            left, right = self._combined(node.left, named), self._combined(node.right, named)
            return _OPERATORS[type(node.op)](left, right)
        return named[self._names[node.col_offset + self._indent]]

    def _unreadable(self, place: int) -> UserError:
        return UserError(
            f"expected names of regions joined by | & - ^, with closed parentheses, got "
            f"{self.text!r}, which cannot be read from character {place + self._indent} on"
        )
