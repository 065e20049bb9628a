"""The method in one drawing, which opens every chapter: what the chapter is about is coloured."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from ..figures import INK, WIDTH, new_figure, styled
from .panels import ANOMALOUS, GOOD

#: what can be coloured: the parts of DMDD, and what DMDD+ adds to them
PARTS = ("teacher", "pairs", "student", "msn", "evaluation", "plus")
QUIET, FAINT = "#f4f4f4", "#9a9a9a"
IMAGE, TEACHER, STUDENT, MSN = "#dcedc8", "#cfd8dc", "#d7c9ea", "#c8e6c9"
RESULT, PLUS = "#ffe0b2", "#f8bbd0"


class _Canvas:
    """Boxes and arrows on `ax`; parts that are not in `here` are drawn in grey."""

    def __init__(self, ax: Axes, here: tuple[str, ...]):
        self.ax, self.here = ax, here

    def ink(self, part: str) -> str:
        return INK if part in self.here else FAINT

    def box(self, part: str, at: tuple, size: tuple, text: str, colour: str, ink: str | None = None):
        """A box with its lower left corner `at`."""
        lit = part in self.here
        shape = FancyBboxPatch(at, *size, "round,pad=0,rounding_size=0.12", ec=self.ink(part), lw=1)
        shape.set_facecolor(colour if lit else QUIET)
        self.ax.add_patch(shape)
        self._text(at[0] + size[0] / 2, at[1] + size[1] / 2, text, ink if lit and ink else self.ink(part))

    def network(self, part: str, left: float, middle: float, text: str, colour: str):
        """A network whose features shrink on their way from left to right."""
        corners = [(left, middle - 0.8), (left, middle + 0.8), (left + 2.6, middle + 0.5)]
        corners.append((left + 2.6, middle - 0.5))
        fill = colour if part in self.here else QUIET
        self.ax.add_patch(Polygon(corners, fc=fill, ec=self.ink(part), lw=1, joinstyle="round"))
        self._text(left + 1.3, middle, text, self.ink(part))

    def arrow(self, part: str, start: tuple, end: tuple, kind: str = "-|>", colour: str | None = None):
        ink = colour if colour and part in self.here else self.ink(part)
        self.ax.annotate(
            "", end, start, arrowprops={"arrowstyle": kind, "color": ink, "shrinkA": 1, "shrinkB": 1}
        )

    def note(self, part: str, x: float, y: float, text: str, colour: str | None = None, align: str = "left"):
        ink = colour if colour and part in self.here else self.ink(part)
        self._text(x, y, text, ink, ha=align, fontsize=9.5)

    def _text(self, x: float, y: float, text: str, ink: str, ha: str = "center", fontsize: float = 10.5):
        self.ax.text(x, y, text, ha=ha, va="center", color=ink, fontsize=fontsize, linespacing=1.15)


@styled
def plot_method(*here: str) -> Figure:
    """DMDD drawn as boxes and arrows: a pair, both images of which enter the frozen teacher and the student,
    two losses, six maps of the damaged copy, the MSN, map and score. `here`: the PARTS to colour, none for
    all of DMDD; "plus" draws DMDD+ too.

    Raises ValueError for an unknown part.
    """
    if unknown := set(here) - set(PARTS):
        raise ValueError(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    fig = new_figure(WIDTH, 3.5, layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 21.7), ylim=(-0.35, 6.75))
    ax.set_axis_off()
    canvas = _Canvas(ax, here or PARTS[:-1])
    _draw_pair(canvas)
    _draw_branches(canvas)
    _draw_fusion(canvas)
    if "plus" in here:
        _draw_plus(canvas)
    return fig


def _draw_pair(canvas: _Canvas):
    canvas.box("pairs", (0.2, 4.7), (1.9, 1.3), "good\nimage $x_n$", IMAGE)
    canvas.box("pairs", (0.2, 1.2), (1.9, 1.3), "damaged\ncopy $x_a$", "#ffccbc")
    canvas.arrow("pairs", (0.55, 4.7), (0.55, 2.5))
    canvas.note("pairs", 0.7, 3.6, "texture in\nmask $M$")
    for name, y in (("teacher", 5.35), ("teacher", 0.75)):
        canvas.network(name, 3.3, y, "frozen\nteacher $T$", TEACHER)
    canvas.network("student", 3.3, 3.05, "student", STUDENT)
    canvas.arrow("teacher", (2.1, 5.35), (3.3, 5.35))
    canvas.arrow("student", (2.1, 4.95), (3.3, 3.4))
    canvas.arrow("student", (2.1, 2.0), (3.3, 2.8))
    canvas.arrow("teacher", (2.1, 1.7), (3.3, 0.95))


def _draw_branches(canvas: _Canvas):
    canvas.box("student", (6.6, 2.4), (1.25, 1.3), "1×1\nconvs", "#eeeeee")
    canvas.arrow("student", (5.9, 3.05), (6.6, 3.05))
    for name, y, colour in (("$N_k$", 3.35, GOOD), ("$A_k$", 1.8, ANOMALOUS)):
        canvas.box("student", (8.7, y), (1.7, 0.95), name, colour, "white")
        canvas.arrow("student", (7.85, 3.05), (8.7, y + 0.48))
    for name, y in (("$T_k(x_n)$", 4.88), ("$T_k(x_a)$", 0.28)):
        canvas.box("teacher", (8.7, y), (1.7, 0.95), name, TEACHER)
        canvas.arrow("teacher", (5.9, y + 0.47), (8.7, y + 0.47))
    canvas.arrow("student", (9.55, 4.3), (9.55, 4.88), "<|-|>", GOOD)
    canvas.arrow("student", (9.55, 1.23), (9.55, 1.8), "<|-|>", ANOMALOUS)
    canvas.note("student", 9.3, 4.58, "NGM: fit", GOOD, "right")
    canvas.note("student", 9.3, 1.5, "AIM: widen inside $M$", ANOMALOUS, "right")


def _draw_fusion(canvas: _Canvas):
    for shift in (0.3, 0.15, 0):
        canvas.box("msn", (11.6 + shift, 2.25 + shift), (3.0, 1.5), "", "#ffffff")
    distances = "$d(N_k(x_a), T_k(x_a))$\n$d(A_k(x_a), T_k(x_a))$"
    canvas.note("msn", 13.1, 3.0, f"six maps\n{distances}", align="center")
    for y in (3.83, 2.28):
        canvas.arrow("msn", (10.4, y), (11.6, 3.0 + (y - 3.05) * 0.4))
    canvas.arrow("msn", (10.4, 1.05), (12.3, 2.25))
    canvas.box("msn", (15.7, 2.3), (1.7, 1.4), "MSN", MSN)
    canvas.arrow("msn", (14.9, 3.0), (15.7, 3.0))
    canvas.note("msn", 16.55, 1.9, "trained with $M$", align="center")
    canvas.box("evaluation", (18.2, 2.3), (1.8, 1.4), "anomaly\nmap", RESULT)
    canvas.arrow("evaluation", (17.4, 3.0), (18.2, 3.0))
    canvas.arrow("evaluation", (20.0, 3.0), (20.5, 3.0))
    canvas.note("evaluation", 20.55, 3.0, "score")


def _draw_plus(canvas: _Canvas):
    canvas.box("plus", (12.3, 0.05), (4.3, 1.2), "distance from PaDiM\nstatistics of $T_k(x_n)$", PLUS)
    canvas.box("plus", (18.3, 0.15), (1.6, 1.0), "plus", PLUS)
    canvas.arrow("plus", (10.4, 0.65), (12.3, 0.65))
    canvas.arrow("plus", (16.6, 0.65), (18.3, 0.65))
    canvas.arrow("plus", (19.1, 2.3), (19.1, 1.15))
    canvas.arrow("plus", (19.9, 0.65), (20.5, 0.65))
    canvas.note("plus", 20.55, 0.65, "score")
    canvas.note("plus", 14.3, 1.53, "DMDD+ [ours]", align="center")
