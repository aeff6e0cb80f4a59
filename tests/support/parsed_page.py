"""A page of HTML, parsed strictly."""

from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Tags in order, attributes, text and table cells; every tag must be closed where it was
    opened. A cell's small note is ``notes[table][row][column]``, empty where it has none."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.notes: dict[str, list[list[str]]] = {}
        self.text: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        for kept in (self.tables, self.notes):
            if tag == "tr":
                list(kept.values())[-1].append([])
            if tag in ("td", "th"):
                list(kept.values())[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "caption":
            self.tables[data], self.notes[data] = [], []
        elif self.open and self.open[-1] in ("td", "th"):
            list(self.tables.values())[-1][-1][-1] += data
        elif self.open and self.open[-1] == "small":
            list(self.notes.values())[-1][-1][-1] += data
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def table(self, title: str) -> list[list[str]]:
        (found,) = (rows for name, rows in self.tables.items() if title in name)
        return found

    def notes_of(self, title: str) -> list[list[str]]:
        (found,) = (rows for name, rows in self.notes.items() if title in name)
        return found


def number(cell: str) -> float:
    return float(cell.replace(",", "").replace("−", "-"))
