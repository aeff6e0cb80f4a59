"""The quickstart's report: a page that a person understands who has never heard of the paper."""

from freezetrain.report.page import render_report

__all__ = ["render_report"]
