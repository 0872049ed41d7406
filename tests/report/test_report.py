"""Figures for any number of units and classes and any name; a page that stands alone and says what was found."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from selkern.evaluation import Evaluation
from selkern.models.cost import Cost
from selkern.report import figures
from selkern.report.findings import of_fields, of_scale, of_studies
from selkern.report.page import EXAMPLES, Example, Report, draw, pick_examples, render
from selkern.selection.analyses import Studies
from selkern.selection.field import CHOSEN, LARGEST, SMALLEST, FieldStudy, Growth, UnitField
from selkern.selection.plots import to_png, to_svg
from selkern.selection.record import UnitInfo
from selkern.selection.scale import ClassScale, ScaleStudy, UnitScale
from selkern.selection.statistics import Estimate

HOSTILE = ("<script>alert(1)</script>", "a & b", "$x^{2$", "$\\frac$", "größe Ж", "猫 🐈", '"><img src=x>', "x" * 90)
SVG = "{http://www.w3.org/2000/svg}"


def estimate(value: float, half: float = 0.05) -> Estimate:
    return Estimate(value, value - half, value + half)


def make_study(kind: str, rhos: Sequence[float], branches: int = 2, channels: int = 32) -> ScaleStudy:
    """One unit per rho, its correlation within classes and its change; half and a quarter with the light removed and
    pooled; intervals of 0.05 on each side."""
    rng = np.random.default_rng(0)
    units = []
    for number, rho in enumerate(rhos):
        known = kind == "true scale"
        units.append(
            UnitScale(
                unit=UnitInfo(f"stages.{number}.0", f"SK_{number + 2}_1", tuple(range(3, 3 + 2 * branches, 2))),
                within=estimate(rho) if known else None,
                within_lit=estimate(rho / 2) if known else None,
                rho=estimate(rho / 4) if known else None,
                partial=estimate(rho / 2) if known else None,
                partial_both=estimate(rho / 3) if known else None,
                groups=tuple(estimate(rho * g) for g in range(3)),
                change=estimate(rho),
                curve=rng.random((3, channels)),
                mean=0.1,
                std=0.2,
            )
        )
    names = ("below 1.6x", "1.6x to 2.5x", "above 2.5x") if kind == "true scale" else ("1.0x", "1.5x", "2.0x")
    scale = np.exp(rng.uniform(0, 1.4, 90)) if kind == "true scale" else None
    chosen = rng.normal(size=(90, len(rhos))) if kind == "true scale" else None
    return ScaleStudy(kind, 90, 30, names, tuple(units), scale, chosen)


def make_evaluation(classes: Sequence[str], n: int = 60) -> Evaluation:
    rng = np.random.default_rng(1)
    k = min(5, len(classes))
    top = np.stack([rng.permutation(len(classes))[:k] for _ in range(n)])
    labels = np.where(rng.random(n) < 0.6, top[:, 0], rng.integers(0, len(classes), n))
    losses, top_p = rng.random(n).astype(np.float32), rng.random((n, k)).astype(np.float32)
    return Evaluation(tuple(classes), np.arange(n), labels, losses, top, top_p)


def metrics(epochs: int) -> list[dict[str, float]]:
    names = ("train_loss", "val_loss", "train_top1", "val_top1", "seconds", "images_per_s")
    return [{"epoch": e + 1.0, **dict.fromkeys(names, 1 / (e + 1))} for e in range(epochs)]


def checked(figure: Figure) -> ElementTree.Element:
    """The figure as a tree of SVG; every warning on the way is an error here."""
    assert isinstance(figure, Figure)
    return ElementTree.fromstring(to_svg(figure))


OF_A_STUDY: dict[str, tuple[Callable[[ScaleStudy], Figure], str]] = {
    "correlations": (figures.correlations, "true scale"),
    "dose_response": (figures.dose_response, "true scale"),
    "bars of sizes": (ScaleStudy.plot, "true scale"),
    "bars of zooms": (ScaleStudy.plot, "zoom"),
    "curves of sizes": (figures.channel_curves, "true scale"),
    "curves of zooms": (figures.channel_curves, "zoom"),
}


@pytest.mark.parametrize("units", [1, 2, 7])
@pytest.mark.parametrize("name", OF_A_STUDY)
def test_a_figure_of_any_number_of_units_can_be_saved(name: str, units: int) -> None:
    function, kind = OF_A_STUDY[name]
    checked(function(make_study(kind, np.linspace(-0.5, 0.9, units).tolist())))


@pytest.mark.parametrize(("branches", "channels"), [(3, 16), (2, 1), (2, 50)])
def test_the_curves_of_units_of_any_width_can_be_saved(branches: int, channels: int) -> None:
    checked(figures.channel_curves(make_study("zoom", [0.3], branches, channels)))


def test_a_figure_is_a_png_too() -> None:
    assert to_png(figures.confusion(make_evaluation(HOSTILE)))[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["correlations", "dose_response", "bars of sizes"])
def test_a_unit_without_a_value_can_be_drawn(name: str) -> None:
    checked(OF_A_STUDY[name][0](make_study("true scale", [np.nan, 0.3])))


@pytest.mark.parametrize("classes", [2, 10, 30])
def test_a_confusion_matrix_of_any_number_of_classes_can_be_saved(classes: int) -> None:
    checked(figures.confusion(make_evaluation([str(c) for c in range(classes)])))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_class_may_have_any_name(name: str) -> None:
    checked(figures.confusion(make_evaluation([name, "other"])))


def test_a_dollar_is_a_dollar() -> None:
    figure = figures.confusion(make_evaluation(["$a^2$", "b"]))
    checked(figure)
    labels = [*figure.axes[0].get_xticklabels(), *figure.axes[0].get_yticklabels()]
    assert [label.get_text() for label in labels] == ["$a^2$", "b"] * 2
    assert not any(label.get_parse_math() for label in labels)


@pytest.mark.parametrize("epochs", [1, 30])
def test_the_curves_of_any_training_can_be_saved(epochs: int) -> None:
    figure = figures.training_curves(metrics(epochs))
    checked(figure)
    loss = figure.axes[0]
    assert all(float(tick).is_integer() for tick in loss.get_xticks())
    assert loss.get_ylim()[1] > 1.05 * max(row["val_loss"] for row in metrics(epochs)), "the highest point is whole"


def test_the_same_figure_gives_the_same_file() -> None:
    one, two = (to_svg(make_study("zoom", [0.3, 0.1]).plot()) for _ in range(2))
    assert one == two


EXAMPLE = Example(
    image="data:image/png;base64,AAAA",
    truth=HOSTILE[0],
    prediction=HOSTILE[6],
    probability=0.5,
    where='/home/<b>me</b>/"quoted".png',
    note="2.0x",
    units=(("SK_2_1", 0.3, "rgb(1,2,3)"),),
)


def studies_of(study: ScaleStudy) -> Studies:
    return Studies(truth=study) if study.kind == "true scale" else Studies(sweep=study)


def make_report(study: ScaleStudy | None, classes: Sequence[str] = HOSTILE, epochs: int = 2) -> Report:
    return Report(
        title="<i>title</i>",
        model="sknet_mini",
        data="https://example.org/<data>",
        split="test",
        evaluation=make_evaluation(classes),
        cost=Cost(123_456, 7_000_000),
        input_size=48,
        rows=metrics(epochs),
        studies=Studies() if study is None else studies_of(study),
        right=[EXAMPLE],
        wrong=[EXAMPLE] * 2,
        provenance={"trained with command": "selkern train --data '<x>'"},
        notes=["class '<b>' has no training image"],
    )


STUDIES = {
    "true scale": make_study("true scale", [0.4, -0.3, 0.0]),
    "zoom": make_study("zoom", [0.4, -0.3]),
    "none": None,
}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_the_page_stands_alone_and_is_hurt_by_no_name(study: ScaleStudy | None) -> None:
    report = make_report(study)
    page = render(report, draw(report))
    # The address the user gave as data is text; whatever would load something is none.
    assert re.findall(r"<script|<link|<iframe|<object|<base|@import|javascript:", page) == []
    assert re.findall(r"\son\w+=", page) == []
    sources = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"']*)""", page)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources), set(sources)
    assert all(u.startswith("#") for u in re.findall(r"url\(([^)]*)\)", page))
    addresses = set(re.findall(r"https?://[^\s\"'<>&]+", page)) - {"https://example.org/"}
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for name in (HOSTILE[0], HOSTILE[6], "<i>title</i>", "<b>me</b>", "<data>", "'<x>'", "'<b>'"):
        assert name not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "$\\frac$" in page
    assert "猫 🐈" in page
    assert 'title="/home/&lt;b&gt;me&lt;/b&gt;/&#34;quoted&#34;.png"' in page


def test_the_page_tells_the_evaluations_figures() -> None:
    report = make_report(None, classes=("a", "b", "c"))
    page = render(report, draw(report))
    assert f"{100 * report.evaluation.top1:.2f} %" in page
    assert "0.123 M" in page
    assert "7.0 M" in page
    for name, images, share in report.evaluation.per_class():
        assert re.search(rf'<td>{name}</td><td class="n">{images}</td><td class="n">{100 * share:.1f} %</td>', page)


def test_parts_that_are_not_there_are_left_out() -> None:
    report = make_report(None, epochs=0)
    drawn = draw(report)
    assert drawn.keys() == {"confusion_matrix"}
    page = render(report, drawn)
    assert "<h2>Training</h2>" not in page
    assert "What the neurons chose" not in page
    assert draw(make_report(STUDIES["zoom"])).keys() == {
        "selection_bars",
        "selection_channels",
        "curves",
        "confusion_matrix",
    }


def test_of_many_classes_the_worst_twenty_are_told() -> None:
    report = make_report(None, classes=[f"class{c:02}" for c in range(40)])
    page = render(report, draw(report))
    assert "(the 20 worst)" in page
    shown = re.findall(r'<tr><td>(class\d\d)</td><td class="n">', page)
    known = {name: share for name, n, share in report.evaluation.per_class() if n}
    assert len(shown) == 20
    assert [known[name] for name in shown] == sorted(known.values())[:20]


def test_of_too_many_classes_for_a_matrix_the_commonest_confusions_are_told() -> None:
    """No picture of less than a pixel for each class, and no table that nobody reads."""
    report = make_report(None, classes=[f"class{c:04}" for c in range(1200)])
    drawn = draw(report)
    assert "confusion_matrix" not in drawn
    page = render(report, drawn)
    assert "<h3>Confusion matrix</h3>" not in page
    assert "per_class.csv has all 1,200 classes." in page
    pairs = re.findall(r'<tr><td>(class\d+)</td><td>(class\d+)</td><td class="n">(\d+)</td></tr>', page)
    assert [(true, predicted, int(n)) for true, predicted, n in pairs] == report.evaluation.mistaken(20)
    assert len(pairs) == 20
    assert len(re.findall(r"<tr><td>class", page)) == 40


def claimed(line: str, labels: list[str]) -> list[list[str]]:
    """The units of each claim of a sentence, which says all, none, or how many and which."""
    claims = []
    for text, number, names in re.findall(
        r"(the one unit|no unit at all|(?:all|none of the|(\d+) of) \d+ units(?: \(([^)]*)\))?)", line
    ):
        result = labels if text.startswith(("all", "the one")) else names.split(", ") if names else []
        assert not number or int(number) == len(result)
        claims.append(result)
    return claims


@pytest.mark.parametrize("rhos", [[0.4, 0.06, 0.04], [0.3, -0.3, 0.0], [-0.3, -0.2, -0.16], [0.0, 0.0]])
def test_the_findings_say_what_the_intervals_carry(rhos: list[float]) -> None:
    """Intervals reach 0.05 to each side; half the correlation is left with the light removed, a quarter pooled."""
    study = replace(make_study("true scale", rhos), explained=0.8)
    within, light, pooled, last = of_scale(study)
    labels = [f"SK_{i + 2}_1" for i in range(len(rhos))]

    def beyond(share: float, sign: int) -> list[str]:
        return [label for label, rho in zip(labels, rhos, strict=True) if sign * rho * share > 0.05]

    for line, share in ((within, 1), (light, 1 / 2), (pooled, 1 / 4)):
        assert claimed(line, labels) == [beyond(share, 1), beyond(share, -1)]
    assert within.startswith("Within a class, larger objects draw more")
    assert "mean intensity and contrast removed" in light
    assert "Size is nearly the class here: the class explains 80%" in pooled
    assert labels[-1] in last
    assert ("hardly one" in last) == (abs(rhos[-1]) < 0.15)
    assert ("a pattern is there" in last) == (abs(rhos[-1]) >= 0.15)


def test_a_sign_that_turns_with_intensity_and_contrast_removed_is_said() -> None:
    study = make_study("true scale", [0.4, 0.4, 0.4])
    one, two, three = study.units
    units = (replace(one, within_lit=estimate(-0.4)), replace(two, within_lit=estimate(0.01)), three)
    assert (
        "Its sign turns in 1 of 3 units (SK_2_1): there the finding depends on"
        in (of_scale(replace(study, units=units))[1])
    )
    assert "turns" not in " ".join(of_scale(study))


def test_fields_that_shrink_are_said_as_well_and_nothing_of_what_is_not_there() -> None:
    def said(*pairs: tuple[float, float]) -> list[str]:
        labels = [f"SK_{i + 2}_1" for i in range(len(pairs))]
        some = np.ones(4)
        fields = tuple(
            UnitField(label, how, estimate(5.0), some, np.ones((4, 4)))
            for label in labels
            for how in (SMALLEST, CHOSEN, LARGEST)
        )
        growths = [
            Growth(label, estimate(chosen), estimate(frozen), estimate(0), estimate(0))
            for label, (chosen, frozen) in zip(labels, pairs, strict=True)
        ]
        return of_fields(FieldStudy(4, 32, np.arange(4), fields), growths)[1:]

    both, frozen = said((0.3, 0.3), (-0.4, 0.0), (0.0, 0.0))
    assert both == (
        "Within a class, the field grows with the object's true size in 1 of 3 units (SK_2_1), and shrinks in 1 of 3 "
        "units (SK_3_1)."
    )
    assert "in 1 of 3 units (SK_2_1), and shrinks in none of the 3 units: that part is not the selection's" in frozen
    assert len(said((0.0, 0.0))) == 1, "where nothing is seen, nothing is explained"
    assert said((0.3, 0.0))[1] == "With the selection frozen to its mean, neither is seen in any unit."


def test_classes_that_differ_are_not_hidden_by_their_mean() -> None:
    study = make_study("true scale", [0.0, 0.0])
    by_class = (
        ClassScale("cat", 30, (estimate(0.3), estimate(0.02))),
        ClassScale("dog", 40, (estimate(-0.4), estimate(-0.02))),
        ClassScale("rat", 10, (Estimate(0.9, np.nan, np.nan), Estimate(np.nan, np.nan, np.nan))),
    )
    lines = of_scale(replace(study, by_class=by_class))
    assert any(line.startswith("Classes differ in 1 of 2 units (SK_2_1)") for line in lines)
    last = of_scale(
        replace(make_study("true scale", [0.0]), by_class=tuple(replace(c, rho=c.rho[:1]) for c in by_class))
    )
    assert "but classes differ: dog has -0.40 [-0.45, -0.35], cat +0.30 [+0.25, +0.35]" in last[-1]
    assert "hardly" not in last[-1]


def test_an_interval_that_is_wide_leaves_it_open() -> None:
    study = make_study("true scale", [0.1])
    (unit,) = study.units
    line = of_scale(replace(study, units=(replace(unit, within=Estimate(0.1, -0.3, 0.5)),)))[-1]
    assert "which leaves it open" in line


def test_a_doubt_stands_in_place_of_conclusions() -> None:
    assert of_scale(replace(make_study("true scale", [0.4, 0.4]), doubts=("no.",))) == ["no."]


@pytest.mark.parametrize("kind", ["true scale", "zoom"])
def test_nothing_is_concluded_from_a_network_at_chance(kind: str) -> None:
    """Of 60 images 45 are of one class, and 45 are named right: no better than naming that class."""
    report = make_report(make_study(kind, [0.4, -0.3, 0.0]), classes=("many", "few"))
    labels = (np.arange(60) % 4 == 0).astype(np.int64)
    top = np.stack([np.zeros(60, np.int64), np.ones(60, np.int64)], axis=1)
    poor = replace(report.evaluation, labels=labels, top=top)
    assert not poor.above_chance
    report = replace(report, evaluation=poor)
    said = of_studies(report.studies, poor)
    assert list(said) == ["main"]
    (line,) = said["main"]
    assert "not better than always naming the largest class (many): 75.0% top-1" in line
    page = render(report, draw(report))
    assert "What its units chose says nothing about its task" in page
    assert page.count('<div class="found">') == 1
    assert "SK_2_1" in page, "the figures are given all the same"
    assert poor.to_dict()["above_chance"] is False
    one = replace(poor, labels=np.zeros(60, np.int64))
    assert of_studies(report.studies, one)["main"][0].startswith("All images are of one class, many")
    good = replace(poor, top=np.stack([labels, 1 - labels], axis=1))
    assert good.above_chance
    assert of_studies(report.studies, good)["main"] == of_scale(report.study)  # type: ignore[arg-type]


def test_a_network_that_knows_a_rare_class_knows_its_task() -> None:
    """Of 103 images 100 are of one class: always naming it is right for 97 %, and knows nothing."""
    labels = np.array([0] * 100 + [1] * 3)

    def naming(first: np.ndarray) -> Evaluation:
        top = np.stack([first, 1 - first], axis=1)
        n = len(labels)
        losses, top_p = np.zeros(n, np.float32), np.zeros((n, 2), np.float32)
        return Evaluation(("RBC", "WBC"), np.arange(n), labels, losses, top, top_p)

    knows = np.where(np.arange(103) < 10, 1, labels)  # 90 of 100, and 3 of 3
    assert naming(knows).above_chance
    assert not naming(np.zeros_like(labels)).above_chance
    assert not naming(np.arange(103) % 2).above_chance
    assert not naming(np.where(np.arange(103) == 0, 1, 0)).above_chance


@pytest.mark.parametrize("changes", [[0.4, 0.06, 0.04], [0.3, -0.3, 0.0], [-0.3, -0.2], [0.0]])
def test_the_findings_of_a_sweep_count_each_unit_once(changes: list[float]) -> None:
    line = of_scale(make_study("zoom", changes))[0]
    labels = [f"SK_{i + 2}_1" for i in range(len(changes))]
    up = [label for label, change in zip(labels, changes, strict=True) if change > 0.05]
    down = [label for label, change in zip(labels, changes, strict=True) if change < -0.05]
    assert claimed(line, labels) == [up, down]
    assert line.index("to the larger") < line.index("to the smaller")
    assert "from 1.0x to 2.0x" in line


def test_examples_are_spread_and_the_surest_mistakes_come_first() -> None:
    evaluation = make_evaluation(["a", "b", "c"], n=200)
    right, wrong = pick_examples(evaluation)
    assert len(right) == len(wrong) == EXAMPLES
    assert evaluation.right[right].all()
    assert not evaluation.right[wrong].any()
    assert right == sorted(right)
    sure = evaluation.top_p[~evaluation.right, 0]
    assert evaluation.top_p[wrong, 0].tolist() == sorted(sure.tolist(), reverse=True)[:EXAMPLES]
    sizes = np.random.default_rng(2).random(200)
    by_size, _ = pick_examples(evaluation, sizes)
    assert sizes[by_size].tolist() == sorted(sizes[by_size].tolist())
    assert sizes[by_size[0]] == sizes[evaluation.right].min()
    assert sizes[by_size[-1]] == sizes[evaluation.right].max()


@pytest.mark.parametrize("all_right", [False, True])
def test_there_may_be_no_right_or_no_wrong_examples(all_right: bool) -> None:
    e = make_evaluation(["a", "b"])
    labels = e.top[:, 0] if all_right else e.top[:, 1]
    right, wrong = pick_examples(Evaluation(e.classes, e.indices, labels, e.losses, e.top, e.top_p))
    assert (len(right), len(wrong)) == ((EXAMPLES, 0) if all_right else (0, EXAMPLES))
