"""Perplexity and bits per byte of many languages, and how much of them a model forgot.

What runs models or needs torchmetrics, seconds of imports, is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from freezetrain.evaluation.documents import Document, encode_documents
from freezetrain.evaluation.figures import Figures, StandardErrors
from freezetrain.evaluation.forgetting import Forgetting, LanguageForgetting, forgetting
from freezetrain.evaluation.history import Evaluation, History
from freezetrain.evaluation.label_sums import label_sums
from freezetrain.evaluation.results import write_results
from freezetrain.evaluation.schedule import PAPER_SAMPLES
from freezetrain.evaluation.sums import DocumentSums
from freezetrain.evaluation.table import forgetting_table

if TYPE_CHECKING:
    from freezetrain.evaluation.metric import DocumentNLL, LanguageNLL
    from freezetrain.evaluation.perplexity import evaluate, evaluate_documents
    from freezetrain.evaluation.watch import ForgettingWatch

_HOMES = {
    "DocumentNLL": "freezetrain.evaluation.metric",
    "ForgettingWatch": "freezetrain.evaluation.watch",
    "LanguageNLL": "freezetrain.evaluation.metric",
    "evaluate": "freezetrain.evaluation.perplexity",
    "evaluate_documents": "freezetrain.evaluation.perplexity",
}

__all__ = [
    "PAPER_SAMPLES",
    "Document",
    "DocumentNLL",
    "DocumentSums",
    "Evaluation",
    "Figures",
    "Forgetting",
    "ForgettingWatch",
    "History",
    "LanguageForgetting",
    "LanguageNLL",
    "StandardErrors",
    "encode_documents",
    "evaluate",
    "evaluate_documents",
    "forgetting",
    "forgetting_table",
    "label_sums",
    "write_results",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'freezetrain.evaluation' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
