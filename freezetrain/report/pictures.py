"""Figures as files, PNG and SVG, and as images in TensorBoard."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from freezetrain.errors import UserError
from freezetrain.escaping import visible
from freezetrain.files import whole
from freezetrain.report.page import WIDTHS, Draw
from freezetrain.report.style import as_data

FOLDER, BOARD = "pictures", "tensorboard"

_DOTS = 144  # an inch; the page draws at 72


def save_pictures(figures: Mapping[str, Draw], folder: Path) -> list[Path]:
    """``<name>.png`` and ``<name>.svg`` of each, as wide as on the page, on a white ground.

    Each file is whole or absent, and replaces an older one; the same figures give the same bytes.
    Raises ``UserError`` if the folder cannot be written to.
    """
    paths = []
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in figures.items():
            figure = _on_white(draw)
            for kind in ("png", "svg"):
                paths.append(folder / f"{name}.{kind}")
                _save(figure, paths[-1], kind)
    return paths


def to_tensorboard(figures: Mapping[str, Draw], folder: Path) -> None:
    """An event file with an image of each, its name as the tag, at step 0.

    Event files of an earlier start are removed, so that the same image is there once. Raises
    ``UserError`` as :func:`save_pictures`.
    """
    from torch.utils.tensorboard import SummaryWriter

    with _writable(folder):
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        writer = SummaryWriter(str(folder))
        try:
            for name, draw in figures.items():
                figure = _on_white(draw)
                figure.set_dpi(_DOTS)
                with as_data(figure):
                    writer.add_figure(visible(name), figure, global_step=0, close=False)
        finally:
            writer.close()


def _on_white(draw: Draw) -> Figure:
    figure = draw(WIDTHS["wide"])
    figure.patch.set(facecolor="white", alpha=1)
    return figure


def _save(figure: Figure, path: Path, kind: str) -> None:
    # Neither date nor version, which would differ from run to run.
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with (
        as_data(figure),
        matplotlib.rc_context({"svg.hashsalt": path.stem}),
        whole(path) as new,
    ):
        figure.savefig(new, format=kind, dpi=_DOTS, metadata=metadata)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write pictures to {folder}: {error.strerror or error}; make room there, or "
            "give --out another folder"
        ) from error
