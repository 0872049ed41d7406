"""report.html: one file with everything a run has shown, readable without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from selkern.data.preprocess import Preprocess
from selkern.data.split import Split
from selkern.evaluation import MATRIX, Evaluation
from selkern.models.cost import Cost
from selkern.report import figures
from selkern.report import findings as words
from selkern.selection.analyses import Studies
from selkern.selection.look import draw as draw_looks
from selkern.selection.observe import Observed
from selkern.selection.plots import to_svg
from selkern.selection.scale import ScaleStudy


def render_page(name: str, **values: Any) -> str:
    """One self-contained page from a template of this folder, with `report.css` as its `style`."""
    folder = files("selkern.report")
    # Autoescape is on: class names and file names are the user's, and may hold anything.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(folder.joinpath(name).read_text(encoding="utf-8"))
    return template.render(style=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")), **values)


EXAMPLES = 12
_FEW = 20  # classes that can be read in a table; of more the worst are shown


@dataclass(frozen=True)
class Example:
    """One image in the report: a data URI, what it is, what was predicted, and what each unit chose."""

    image: str
    truth: str
    prediction: str
    probability: float
    where: str
    note: str
    units: tuple[tuple[str, float, str], ...]  # label, standard deviations from the unit's mean, colour


@dataclass(frozen=True, kw_only=True)
class Report:
    """What goes into the page. Sections whose part is None or empty are left out.

    Attributes:
        title, model, data: what was trained on what.
        split: name of the split that was evaluated.
        evaluation: on that split.
        cost: of the model; input_size in px.
        rows: metrics per epoch.
        studies: of the selection; empty for a network without selective kernels.
        right, wrong: examples.
        provenance: command, versions and so on, by name.
        notes: remarks on the data.
    """

    title: str
    model: str
    data: str
    split: str
    evaluation: Evaluation
    cost: Cost
    input_size: int
    rows: Sequence[Mapping[str, float]]
    studies: Studies
    right: Sequence[Example]
    wrong: Sequence[Example]
    provenance: Mapping[str, str]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def study(self) -> ScaleStudy | None:
        """Selection against the true size where it is known, else against enlargement."""
        return self.studies.main


def draw(report: Report) -> dict[str, Figure]:
    """The figures of a report by name; the names are those of the PNG files."""
    drawn: dict[str, Figure] = {}
    if report.study is not None:
        if report.study.kind == "true scale":
            drawn["selection_correlation"] = figures.correlations(report.study)
            drawn["selection_by_size"] = figures.dose_response(report.study)
        drawn["selection_bars"] = report.study.plot()
        drawn["selection_channels"] = figures.channel_curves(report.study)
    drawn |= _draw_studies(report.studies)
    if report.rows:
        drawn["curves"] = figures.training_curves([dict(row) for row in report.rows])
    if len(report.evaluation.classes) <= MATRIX:  # of more, each would be less than a pixel
        drawn["confusion_matrix"] = figures.confusion(report.evaluation)
    return drawn


def _draw_studies(studies: Studies) -> dict[str, Figure]:
    drawn: dict[str, Figure] = {}
    if studies.truth is not None and studies.sweep is not None:  # else it is the main study, drawn already
        drawn["enlargement_bars"] = studies.sweep.plot()
    if studies.selected is not None and studies.selected.class_rows():
        drawn["selection_by_class"] = studies.selected.plot()
    if studies.causal is not None:
        drawn["causal"] = studies.causal.plot()
    if studies.fields is not None:
        drawn["field_radii"] = studies.fields.plot()
        drawn["field_maps"] = studies.fields.plot_maps()
    if studies.looks and studies.selected is not None:
        drawn["looks"] = draw_looks(studies.looks, studies.selected)
    return drawn


def render(report: Report, drawn: Mapping[str, Figure]) -> str:
    """The page, with its figures inside it."""
    evaluation = report.evaluation
    return render_page(
        "report.html.j2",
        report=report,
        figures={name: Markup(to_svg(figure)) for name, figure in drawn.items()},
        said=words.of_studies(report.studies, evaluation),
        interval=evaluation.top1_interval,
        per_class=_class_rows(evaluation),
        mistaken=evaluation.mistaken(_FEW) if len(evaluation.classes) > _FEW else [],
    )


def _class_rows(evaluation: Evaluation) -> list[tuple[str, int, float]]:
    """Per class, the worst first where there are too many to read."""
    rows = [row for row in evaluation.per_class() if row[1]]
    return rows if len(rows) <= _FEW else sorted(rows, key=lambda row: row[2])[:_FEW]


def pick_examples(evaluation: Evaluation, sizes: NDArray[np.float64] | None = None) -> tuple[list[int], list[int]]:
    """Positions of examples in the evaluation: right ones, spread over the split, and the surest wrong ones.

    Args:
        sizes: (n,) size of the object in each evaluated image; right examples then go from small to large.
    """
    right, wrong = np.flatnonzero(evaluation.right), np.flatnonzero(~evaluation.right)
    if sizes is not None:
        right = right[np.argsort(sizes[right], kind="stable")]
    spread = right[np.linspace(0, len(right) - 1, min(EXAMPLES, len(right))).astype(int)]
    surest = wrong[np.argsort(-evaluation.top_p[wrong, 0], kind="stable")[:EXAMPLES]]
    return spread.tolist(), surest.tolist()


def make_examples(
    split: Split,
    preprocess: Preprocess,
    evaluation: Evaluation,
    positions: Sequence[int],
    study: ScaleStudy | None,
    observed: Observed,
    notes: Sequence[str] | None = None,
) -> list[Example]:
    """Examples at some positions of an evaluation, each with what every unit of the study chose for it.

    Args:
        observed: what the units chose in the evaluation.
        notes: one per image of the split, shown below it.
    """
    indices = [int(evaluation.indices[p]) for p in positions]
    cells: list[tuple[tuple[str, float, str], ...]] = [()] * len(indices)
    if study is not None and indices:
        seen = observed.of(np.array(indices))
        assert seen is not None  # they were evaluated
        cells = [_unit_cells(study, row) for row in seen.preference]
    examples = []
    for row, (position, index) in enumerate(zip(positions, indices, strict=True)):
        pixels = preprocess(split.read(index, reading=preprocess.reading())).transpose(1, 2, 0)
        examples.append(
            Example(
                image=_data_uri(pixels),
                truth=evaluation.classes[evaluation.labels[position]],
                prediction=evaluation.classes[evaluation.top[position, 0]],
                probability=float(evaluation.top_p[position, 0]),
                where=split.where(index),
                note=notes[index] if notes else "",
                units=cells[row],
            )
        )
    return examples


def _unit_cells(study: ScaleStudy, preference: NDArray[np.float64]) -> tuple[tuple[str, float, str], ...]:
    """What each unit chose for one image against its own mean: blue larger, orange smaller kernel, full at 2 sd."""
    cells = []
    for unit, value in zip(study.units, preference, strict=True):
        lean = float(value - unit.mean) / max(unit.std, 1e-9)
        strength = min(abs(lean) / 2, 1.0)
        base = (11, 110, 153) if lean > 0 else (217, 115, 13)
        red, green, blue = (round(255 + (part - 255) * strength) for part in base)
        cells.append((unit.unit.label, lean, f"rgb({red},{green},{blue})"))
    return tuple(cells)


def _data_uri(pixels: np.ndarray) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
