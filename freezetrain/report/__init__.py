"""Self-contained pages: runs side by side, variants, the quickstart, the whole paper."""

from freezetrain.report.claims import paper_claims
from freezetrain.report.compare import render_compare
from freezetrain.report.paper import render_paper
from freezetrain.report.quickstart import render_report
from freezetrain.report.runs import render_runs

__all__ = ["paper_claims", "render_compare", "render_paper", "render_report", "render_runs"]
