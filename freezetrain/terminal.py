"""The terminal, through rich: all that is written there as a string is data."""

from typing import Any

from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from freezetrain.escaping import visible, visible_lines


class Terminal(Console):
    """A console on which a string has no markup, emoji code or control character that acts.

    A line break stays one. Tables and styled :class:`rich.text.Text` are written as they are.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible_lines(text), **options)


class What(ProgressColumn):
    """What a bar is of: the description of its task, as data."""

    def render(self, task: Task) -> Text:
        return Text(visible(task.description), "progress.description")
