"""Watch the held-out languages in any training loop: the base first, then whenever it is due."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation.documents import Document, digests
from freezetrain.evaluation.figures import DocumentSums, Figures
from freezetrain.evaluation.history import Evaluation, History
from freezetrain.evaluation.losses import forgetting_table
from freezetrain.evaluation.perplexity import evaluate_documents
from freezetrain.evaluation.schedule import Schedule, TimeShare, Trained
from freezetrain.files import write_json
from freezetrain.forward import Forward
from freezetrain.language_names import check_evaluated
from freezetrain.ranks import from_first_rank, is_first_rank, together
from freezetrain.tables import Table

TABLE_ROWS = 8  # held-out languages in the terminal; the results file has all

_KEPT = ("target", "max_length", "overlap", "time_share")  # a run is resumed with the same


@dataclass(eq=False, repr=False)
class ForgettingWatch:
    """Evaluate every language before the first step, whenever it is due, and at the end.

    For a loop of your own, Fabric and Accelerate: call ``start`` once, ``after_step`` after each
    optimizer step and ``end`` after the last, on every rank. What is evaluated is the model as it
    is called there, so under ``torch.autocast`` if that is on around the call. Training is the
    same, bit for bit, with and without it.

    The evaluation before the first step is the base that all others are compared with, on the same
    documents. ``state_dict`` holds it, so that a resumed run compares with the same base.
    ``history`` holds all evaluations, and ``seconds`` is the time that they have taken since
    ``start``, with what they leave in files and on the terminal.

    Args:
        documents: language -> documents to evaluate, see ``encode_documents``.
        target: the language trained on, one of ``documents``; all others are held out.
        every_n_steps: optimizer steps between evaluations. None: 100, unless one of the next two
            is given.
        every_n_tokens: training tokens between them.
        at_samples: after how many training samples (sequences); ``PAPER_SAMPLES`` are the paper's.
        time_share: evaluations after the base's take at most this share of the training time, in
            (0, 1]: of a fixed subsample of the documents, and not each time they are due, if all
            of them take longer. None: they take what they take.
        max_length: tokens in a window, see ``evaluate``.
        overlap: tokens that windows of a document share, see ``evaluate``.
        batch_tokens: tokens in an evaluation batch, see ``evaluate``.
        results_path: JSON file, rewritten after each evaluation.
        overwrite: let a new run replace an existing results file.
        table: show a table after each evaluation.
        progress: called with the tokens done and their total during an evaluation.
        forward: how a model is called that does not take ``input_ids``, see ``evaluate``.

    Raises ``UserError`` for values that cannot work.
    """

    documents: Mapping[str, Sequence[Document]]
    target: str | None = None
    _: KW_ONLY
    every_n_steps: int | None = None
    every_n_tokens: int | None = None
    at_samples: Sequence[int] = ()
    time_share: float | None = None
    max_length: int = 512
    overlap: int = 1
    batch_tokens: int = 4096
    results_path: str | os.PathLike[str] | None = None
    overwrite: bool = False
    table: bool = True
    progress: Callable[[int, int], None] | None = None
    forward: Forward | None = None
    show: Callable[[str], None] = field(init=False, default=print)  # puts a table on the terminal
    history: History = field(init=False)
    seconds: float = field(init=False, default=0.0)
    trained: Trained = field(init=False, default=Trained(0, 0, 0))  # so far

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.every_n_steps, self.every_n_tokens, self.at_samples)
        if self.target is not None and self.target not in self.documents:
            raise UserError(
                f"the target language {self.target!r} is not among the documents' languages "
                f"{', '.join(self.documents)}{near_misses(self.target, self.documents)}; add its "
                "documents"
            )
        check_evaluated(self.documents)
        if not self.documents.keys() - {self.target}:
            raise UserError("expected documents of at least one held-out language, got none")
        self.history = History(self.target)
        self._share = None if self.time_share is None else TimeShare(self.time_share)
        self._loaded: Mapping[str, Any] | None = None  # a state that the next start goes on from
        self._unfinished = False  # a start that has not come to its end
        self._began: float | None = None
        self._trained_before = 0.0  # seconds of training in earlier starts

    def start(self, model: nn.Module, step: int = 0) -> Evaluation | None:
        """Evaluate the base, or go on from the state that was loaded, and then evaluate nothing.

        ``step``: optimizer steps made before. Raises ``UserError`` if there are any and no state
        was loaded, if that is of other documents, or if the results file is another run's.
        """
        self.seconds = 0.0
        if self._loaded is not None or step > 0:
            self._check_resumed(step)
            self._write_results(begins=True)
            self._loaded = None
            self._began = time.perf_counter()
            return None
        self.history, self.trained = History(self.target), Trained(0, 0, 0)
        self._share = None if self.time_share is None else TimeShare(self.time_share)
        self._trained_before = 0.0
        self._write_results(begins=True)  # before the first evaluation takes its time
        self._unfinished = True
        self._began = time.perf_counter()
        return self._evaluate(model)

    def after_step(
        self, model: nn.Module, step: int, *, tokens: int | None = None, samples: int | None = None
    ) -> Evaluation | None:
        """Evaluate if that is due after ``step`` optimizer steps; every rank must call this.

        ``tokens`` and ``samples``: trained on so far over all ranks, the same on each. Raises
        ``UserError`` before ``start``, and where the schedule needs what is not given.
        """
        if not self.history.evaluations:
            raise UserError("expected start before after_step, got no base so far; call start")
        before, self.trained = self.trained, Trained(step, tokens, samples)
        due = self.schedule.due(before, self.trained)
        return self._evaluate(model) if due and self._affords(last=False) else None

    def end(
        self, model: nn.Module, step: int, *, tokens: int | None = None, samples: int | None = None
    ) -> Evaluation | None:
        """Evaluate after the last step, unless that is done; every rank must call this."""
        self._unfinished = False
        if step <= self.history.last.step:
            return None
        self.trained = Trained(step, tokens, samples)
        self._affords(last=True)
        return self._evaluate(model)

    def evaluate(self, model: nn.Module) -> dict[str, Figures]:
        """The figures of all documents now, on every rank, without keeping what is found."""
        start = time.perf_counter()
        sums_by_language = self._document_sums(model, self.documents)
        self.seconds += time.perf_counter() - start
        return {language: sums.figures() for language, sums in sums_by_language.items()}

    def base_of(self, evaluation: Evaluation) -> dict[str, Figures]:
        """The base's figures of the documents that ``evaluation`` is of."""
        base, chosen, documents = self.history.base, self._chosen, self.history.base_documents
        if evaluation is base or chosen is None or documents is None:
            return base.figures
        return {name: sums.take(chosen[name]).figures() for name, sums in documents.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, ready for JSON; of rank 0, if ranks share a checkpoint."""
        return {
            **{name: getattr(self, name) for name in _KEPT},
            **self.history.state_dict(),
            "digests": digests(self.documents),
            "trained": list(self.trained),
            "seconds_trained": self._seconds_trained(),
            "share": None if self._share is None else self._share.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Have the next ``start`` go on from ``state_dict``; ``UserError`` for other settings.

        One from before a start, as learning-rate finders save and restore, changes nothing.
        """
        if not state_dict["evaluations"]:
            return
        for name in _KEPT:
            then, now = state_dict.get(name), getattr(self, name)
            if then != now:
                raise UserError(
                    f"the checkpoint's run watches forgetting with {name} {then!r}, got {now!r}; "
                    "resume with the same"
                )
        self._loaded = state_dict
        self.history = History.from_dict(state_dict)
        self.trained = Trained(*state_dict["trained"])
        self._trained_before, self._began = state_dict["seconds_trained"], None
        if self._share is not None:
            self._share.load_state_dict(state_dict["share"])

    @property
    def _chosen(self) -> dict[str, list[int]] | None:
        return None if self._share is None else self._share.chosen

    def _check_resumed(self, step: int) -> None:
        """A base of other documents, or none, would make every later figure wrong."""
        if self._loaded is None or not self.history.evaluations:
            raise UserError(
                f"the run resumes at step {step} from a checkpoint without a base evaluation of "
                f"{type(self).__name__}; start anew, resume without it, or evaluate the base by a "
                "ForgettingWatch of the same settings and give its state_dict() to load_state_dict"
            )
        then, now = self._loaded["digests"], digests(self.documents)
        for language in sorted(now.keys() | then.keys()):
            if now.get(language) != then.get(language):
                held, base = self.documents.get(language, ()), self.history.base.figures
                was = base[language].tokens if language in base else "no"
                raise UserError(
                    f"the checkpoint's base was evaluated on {was} tokens of {language!r}, got "
                    f"documents of {sum(d.tokens for d in held)} tokens, not the same ones; "
                    "resume with the same documents"
                )

    def _seconds_trained(self) -> float:
        """Wall time of training over all starts, evaluations left out."""
        if self._began is None:
            return self._trained_before
        return self._trained_before + time.perf_counter() - self._began - self.seconds

    def _affords(self, last: bool) -> bool:
        """Whether the share of the time allows for an evaluation; rank 0's clock says."""
        if self._share is None:
            return True
        trained = from_first_rank(self._seconds_trained())
        if self._share.chosen is None:
            self._share.choose(self.documents, trained, last)
        return self._share.allows(trained)

    def _evaluate(self, model: nn.Module) -> Evaluation:
        """Evaluate the base or, after it, what the share of the time allows for."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()  # what is queued is training, and its time training's
        start = time.perf_counter()
        documents, chosen = self.documents, self._chosen
        if chosen is not None:
            documents = {
                name: [texts[n] for n in chosen[name]] for name, texts in documents.items()
            }
        sums = self._document_sums(model, documents)
        evaluation = self.history.add(
            self.trained.step,
            sums,
            tokens=self.trained.tokens,
            samples=self.trained.samples,
            chosen=chosen,
        )
        self._write_results()
        if self.table and is_first_rank():
            self.show(self._table())
        seconds = time.perf_counter() - start
        self.seconds += seconds
        if self._share is not None:
            seconds = from_first_rank(seconds)
            if len(self.history.evaluations) == 1:
                self._share.base_seconds = seconds
            else:
                self._share.record(seconds)
        return evaluation

    def _document_sums(
        self, model: nn.Module, documents: Mapping[str, Sequence[Document]]
    ) -> dict[str, DocumentSums]:
        return evaluate_documents(
            model,
            documents,
            max_length=self.max_length,
            overlap=self.overlap,
            batch_tokens=self.batch_tokens,
            progress=self.progress,
            forward=self.forward,
        )

    def _results(self) -> dict[str, Any]:
        chosen = self._chosen
        return {
            **self.history.to_dict(),
            "max_length": self.max_length,
            "overlap": self.overlap,
            **asdict(self.schedule),
            "time_share": self.time_share,
            "subsample": chosen and {name: len(numbers) for name, numbers in chosen.items()},
        }

    def _write_results(self, begins: bool = False) -> None:
        """Write the file. Where it cannot be, or a start finds another run's, all ranks refuse."""
        may_replace = not begins or self.overwrite or self._unfinished
        base = self.history.base if self.history.evaluations else None
        write_own(self.results_path, self._results(), may_replace, base)

    def latest_table(self, rows: int = TABLE_ROWS) -> Table:
        """The latest evaluation, with so many held-out languages."""
        base, last = self.history.base, self.history.last
        title = f"Forgetting at step {last.step}, against step {base.step}"
        taken, every = (sum(f.documents or 0 for f in e.figures.values()) for e in (last, base))
        if taken < every:  # or perplexities would not fit those of the table of the base
            title += f", both of {taken} of {every} documents"
        result = None if last is base else last.forgetting
        before, after = self.base_of(last), last.figures
        return forgetting_table(before, after, self.target, result=result, title=title, rows=rows)

    def _table(self) -> str:
        from freezetrain.terminal import Terminal

        console = Terminal(file=sys.stdout, color_system=None)  # what is shown is plain text
        with console.capture() as text:
            console.print(self.latest_table())
        return text.get().rstrip("\n")


def write_own(
    path: str | os.PathLike[str] | None, results: Any, may_replace: bool, base: Evaluation | None
) -> None:
    """Have rank 0 write ``results``, if it has a ``path``; every rank must call this.

    Unless it ``may_replace`` what is there, a file whose first evaluation is not ``base`` is of
    another run. Raises ``UserError``, on all ranks, for that and for a path that cannot be written.
    """
    with together():
        if path is None or not is_first_rank():
            return
        if not may_replace and Path(path).exists() and not _begins_with(base, Path(path)):
            raise UserError(
                f"the results file {str(path)!r} exists, of another run; choose another path, or "
                "give overwrite=True"
            )
        write_json(path, results)


def _begins_with(base: Evaluation | None, path: Path) -> bool:
    if base is None:
        return False
    try:
        first = json.loads(path.read_text(encoding="utf-8"))["evaluations"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return json.dumps(first) == json.dumps(base.to_dict())
