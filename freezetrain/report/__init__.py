"""Self-contained pages that show what runs gained and forgot, and the quickstart's results."""

from freezetrain.report.quickstart import render_report
from freezetrain.report.runs import render_runs

__all__ = ["render_report", "render_runs"]
