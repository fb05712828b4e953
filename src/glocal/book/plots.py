"""Plot style of the book and the few helpers that every chapter needs. The only home of matplotlib in the package."""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from glocal.stats import mean_interval

# Okabe and Ito's palette: distinguishable with every common colour-vision deficiency. The first is the paper's method.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def use_style() -> None:
    """Switch matplotlib to the book's style; call it once in a chapter's set-up cell."""
    mpl.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.figsize": (6.4, 3.8),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "axes.prop_cycle": cycler(color=COLORS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.7,
            "axes.titlesize": 11,
            "axes.labelsize": 10.5,
            "legend.frameon": False,
            "legend.fontsize": 9.5,
            "font.size": 10.5,
            "lines.linewidth": 1.8,
            "svg.hashsalt": "glocal",
        }
    )


def panels(
    n_columns: int = 1, n_rows: int = 1, *, width: float = 6.4, height: float = 3.6
) -> tuple[Figure, np.ndarray]:
    """A figure with a flat array of `n_rows * n_columns` axes; sizes in inches for the whole figure."""
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(width, height), squeeze=False)
    return figure, axes.ravel()


def line_with_band(
    ax: Axes, x: ArrayLike, samples: ArrayLike, *, label: str, color: str | None = None, marker: str = ""
) -> None:
    """Mean over seeds as a line with its 95 % interval as a band.

    Args:
        ax: axes to draw into.
        x: positions, shape `(points,)`.
        samples: measurements, shape `(seeds, points)`.
        label: entry of the legend.
        color: any matplotlib colour; the next of the cycle by default.
        marker: matplotlib marker, for few points.
    """
    x, samples = np.asarray(x), np.atleast_2d(np.asarray(samples, dtype=float))
    (line,) = ax.plot(x, samples.mean(0), label=label, color=color, marker=marker, markersize=4.5)
    if len(samples) > 1:
        intervals = [mean_interval(column, n_resamples=999) for column in samples.T]
        low = [interval.low for interval in intervals]
        high = [interval.high for interval in intervals]
        ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)  # type: ignore[arg-type]


def bars_with_intervals(
    ax: Axes, labels: Sequence[str], samples: ArrayLike, *, colors: Sequence[str] | None = None
) -> None:
    """Horizontal bars of means over seeds with 95 % intervals and the single seeds as dots.

    Args:
        ax: axes to draw into.
        labels: one name per bar, drawn from top to bottom.
        samples: measurements, shape `(bars, seeds)`.
        colors: one colour per bar; the first bar stands out by default.
    """
    samples = np.asarray(samples, dtype=float)
    colors = colors or [COLORS[0]] + [COLORS[6]] * (len(labels) - 1)
    for position, (values, color) in enumerate(zip(samples, colors, strict=True)):
        interval = mean_interval(values, n_resamples=999)
        ax.barh(position, interval.value, color=color, alpha=0.75, height=0.62)
        if interval.low is not None and interval.high is not None:
            ax.hlines(position, interval.low, interval.high, color="black", linewidth=1.4)
        ax.plot(values, np.full(len(values), position), ".", color="black", markersize=4, alpha=0.55)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
