"""The terminal, through rich: all that is written there as a string is data."""

from typing import Any

from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from freezetrain.escaping import visible, visible_lines

_WIDE = 250  # columns, of a log


class Terminal(Console):
    """A console on which a string has no markup, emoji code or control character that acts.

    A line break stays one. Tables and styled :class:`rich.text.Text` are written as they are.
    Where it is no terminal, as in a log, lines are not broken, and tables are as wide as they need,
    unless the environment's COLUMNS says how wide.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)
        if not self.is_terminal and "width" not in options:
            columns = self._environ.get("COLUMNS", "")
            self.width = int(columns) if columns.isdigit() else _WIDE

    def print(self, *objects: Any, **options: Any) -> None:
        if not self.is_terminal and all(isinstance(thing, str | Text) for thing in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)

    def headline(self, text: str) -> None:
        """What begins now: a rule across a terminal, a line of its own elsewhere."""
        if self.is_terminal:
            self.rule(Text(visible(text), "bold"), align="left")
        else:
            self.print(f"-- {visible(text)}")

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible_lines(text), **options)


class What(ProgressColumn):
    """What a bar is of: the description of its task, as data."""

    def render(self, task: Task) -> Text:
        return Text(visible(task.description), "progress.description")
