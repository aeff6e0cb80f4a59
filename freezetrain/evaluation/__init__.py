"""Perplexity and bits per byte of many languages, and how much of them a model forgot."""

from freezetrain.evaluation.documents import Document, encode_documents
from freezetrain.evaluation.figures import Figures
from freezetrain.evaluation.forgetting import Forgetting, LanguageForgetting, forgetting
from freezetrain.evaluation.history import Evaluation, History
from freezetrain.evaluation.metric import LanguageNLL
from freezetrain.evaluation.perplexity import evaluate
from freezetrain.evaluation.results import write_results
from freezetrain.evaluation.table import forgetting_table

__all__ = [
    "Document",
    "Evaluation",
    "Figures",
    "Forgetting",
    "History",
    "LanguageForgetting",
    "LanguageNLL",
    "encode_documents",
    "evaluate",
    "forgetting",
    "forgetting_table",
    "write_results",
]
