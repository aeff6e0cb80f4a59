"""Names that would do something where they were not taken as data."""

from freezetrain.escaping import visible

HTML = "\"'></svg></title></style></script><script>boo()</script><img src=x onerror=boo()>"
MARKUP = "[bold]a[/red] :smile: $\\frac{a}{$ [x](javascript:boo()) `c` | *d* &lt;"
UNSEEN = "\x1b[2J\x1b]0;t\x07\r\n\t\u202egnp\u2028\u200b\x00\udcff"
NASTY = f"_{HTML}{MARKUP}{UNSEEN}"
SHOWN = visible(NASTY)
FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1+1", "\r=1+1", "\n=1", " =1", "＝1", "-"]


def unseen(text: str) -> list[str]:
    """Characters of ``text`` that act or cannot be seen, but for line breaks and spaces."""
    return [c for c in text if not c.isprintable() and c not in "\n\u00a0\u200c\u200d"]
