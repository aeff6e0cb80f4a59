"""Perplexity and bits per byte of many languages, and how much of them a model forgot."""

from freezetrain.evaluation.documents import Document, encode_documents
from freezetrain.evaluation.figures import Figures, StandardErrors
from freezetrain.evaluation.forgetting import Forgetting, LanguageForgetting, forgetting
from freezetrain.evaluation.history import Evaluation, History
from freezetrain.evaluation.label_sums import label_sums
from freezetrain.evaluation.metric import DocumentNLL, LanguageNLL
from freezetrain.evaluation.perplexity import evaluate, evaluate_documents
from freezetrain.evaluation.results import write_results
from freezetrain.evaluation.schedule import PAPER_SAMPLES
from freezetrain.evaluation.sums import DocumentSums
from freezetrain.evaluation.table import forgetting_table
from freezetrain.evaluation.watch import ForgettingWatch

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
