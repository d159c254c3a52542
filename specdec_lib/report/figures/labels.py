"""Points of settings: their sizes, and small labels that cover neither a point nor each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from specdec_lib.report.figures.style import DARK

GAP = 6.0  # between a point and its label, in typographic points
PLACES = (  # where a label may stand, the first that is free: direction, horizontal and vertical alignment
    ((1, 1), "left", "bottom"),
    ((-1, 1), "right", "bottom"),
    ((1, -1), "left", "top"),
    ((-1, -1), "right", "top"),
    ((0, 1), "center", "bottom"),
    ((0, -1), "center", "top"),
    ((1, 0), "left", "center"),
    ((-1, 0), "right", "center"),
)

Label = tuple[Axes, float, float, str]  # panel, place in its data, text


def setting_name(line: Any) -> str:
    """Batch size and gamma of a line, in the fewest letters."""
    gamma = "" if pd.isna(line.num_draft_tokens) else f" γ{line.num_draft_tokens:.0f}"
    return f"B{line.batch_size:.0f}{gamma}"


def areas_of(points: pd.DataFrame) -> np.ndarray:
    """The areas of scattered points: a larger mark is a larger batch."""
    return 22 + 10 * np.log2(points["batch_size"].to_numpy(float))


def label_points(figure: Figure, labels: Iterable[Label]) -> None:
    """Write each label next to its point; a label without a free place is left out.

    Args:
        figure: drawn, with all of its points as scatters.
    """
    labels = list(labels)
    if not labels:
        return
    figure.draw_without_rendering()  # so that the panels have their final sizes
    taken = {axes: _points(axes) for axes in {axes for axes, *_ in labels}}
    for axes, x, y, text in labels:
        box = _write(axes, (x, y), text, taken[axes])
        if box is not None:
            taken[axes].append(box)


def _points(axes: Axes) -> list[Bbox]:
    """The places of all points of a panel, in pixels."""
    boxes = []
    for points in (each for each in axes.collections if isinstance(each, PathCollection)):
        centres = axes.transData.transform(np.ma.getdata(points.get_offsets()).astype(float))
        sizes = np.broadcast_to(np.sqrt(points.get_sizes()) * axes.figure.dpi / 72, len(centres))
        boxes += [
            Bbox.from_bounds(x - size / 2, y - size / 2, size, size)
            for (x, y), size in zip(centres, sizes, strict=True)
        ]
    return boxes


def _write(axes: Axes, place: tuple[float, float], text: str, taken: list[Bbox]) -> Bbox | None:
    """Write a label at the first free place; its box in pixels, or None if there was none."""
    for (right, up), horizontal, vertical in PLACES:
        length = GAP if 0 in (right, up) else 0.7 * GAP
        label = axes.annotate(
            text,
            place,
            xytext=(length * right, length * up),
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            fontsize=7.5,
            color=DARK,
        )
        label.set_in_layout(False)
        box = label.get_window_extent()
        inside = axes.bbox.padded(2)
        fits = inside.containsx(box.x0) and inside.containsx(box.x1)
        fits = fits and inside.containsy(box.y0) and inside.containsy(box.y1)
        if fits and not any(box.overlaps(other) for other in taken):
            return box
        label.remove()
    return None
