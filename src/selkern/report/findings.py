"""What the studies found and did not find, in plain words; only what their intervals carry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from selkern.evaluation import Evaluation
from selkern.selection.analyses import Studies
from selkern.selection.causal import ALL, CausalStudy
from selkern.selection.field import CHOSEN, LARGEST, SMALLEST, FieldStudy, Growth
from selkern.selection.preference import Selected
from selkern.selection.scale import ScaleStudy, UnitScale
from selkern.selection.statistics import Estimate

_MIXED, _NEARLY = 0.1, 0.7  # of the variance of the sizes' ranks, explained by the class
_WEAK = 0.2  # rank correlations within it are no pattern


def of_studies(studies: Studies, evaluation: Evaluation) -> dict[str, list[str]]:
    """Lines per section of the report: main, sweep, classes, causal, fields.

    Of a network that is not better than chance there is one line, which says so: what its units chose says nothing.
    """
    if studies.main is None:
        return {}
    if not evaluation.above_chance:
        return {"main": [of_chance(evaluation)]}
    said = {"main": of_scale(studies.main)}
    if studies.truth is not None and studies.sweep is not None:
        said["sweep"] = of_scale(studies.sweep)
    if studies.selected is not None and studies.selected.class_rows():
        said["classes"] = of_classes(studies.selected)
    if studies.causal is not None:
        said["causal"] = of_causal(studies.causal)
    if studies.fields is not None:
        said["fields"] = of_fields(studies.fields, studies.growth)
    return said


def of_chance(evaluation: Evaluation) -> str:
    """That a network knows nothing of its task."""
    name, share = evaluation.largest
    low, high = evaluation.top1_interval
    if share == 1:
        return (
            f"All images are of one class, {name}: whether the network knows its task cannot be seen on them. The "
            "figures of what its units chose are given without conclusions."
        )
    return (
        f"The network is not better than always naming the largest class ({name}): {evaluation.top1:.1%} top-1 "
        f"[{low:.1%}, {high:.1%}] against {share:.1%}. What its units chose says nothing about its task; the figures "
        "are given without conclusions."
    )


def of_scale(study: ScaleStudy) -> list[str]:
    """What the study found and did not find, in plain words; only what its intervals carry."""
    return _of_zoom(study) if study.kind == "zoom" else _of_truth(study)


def _of_zoom(study: ScaleStudy) -> list[str]:
    units = study.units
    up, down = ([u.unit.label for u in units if u.change.sign == sign] for sign in (1, -1))
    first, last = study.group_names[0], study.group_names[-1]
    return [
        f"Enlarging the centre from {first} to {last} moved the selection to the larger kernel in "
        f"{_of(up, len(units))}, and to the smaller one in {_of(down, len(units))}: the 95 % interval of the "
        f"paired difference leaves out zero. {_by_chance(len(units))}",
        "The paper sees it move to the larger kernel in low and middle units, and no pattern in the last ones. "
        "Mind that enlarging a small image also blurs it.",
    ]


def _of_truth(study: ScaleStudy) -> list[str]:
    total = len(study.units)

    def labels(name: str, sign: int) -> str:
        estimates = [(unit.unit.label, getattr(unit, name)) for unit in study.units]
        return _of([label for label, e in estimates if e is not None and e.sign == sign], total)

    mixed = _of_mixing(study)
    if study.doubts:
        return [*study.doubts, *mixed]
    lines = [
        f"Within a class, larger objects draw more of the larger kernel in {labels('within', 1)}, and less of it in "
        f"{labels('within', -1)}: the interval of the rank correlation leaves out zero, where the intervals of all "
        "units hold at once (95 %).",
        "A larger object is also more ink and changes the contrast. With the image's mean intensity and contrast "
        f"removed as well, the correlation lies above zero in {labels('within_lit', 1)}, below it in "
        f"{labels('within_lit', -1)}.",
    ]
    if turned := [u.unit.label for u in study.units if u.within and u.within_lit and _turns(u.within, u.within_lit)]:
        lines[-1] += (
            f" Its sign turns in {_of(turned, total)}: there the finding depends on how intensity and contrast are "
            "counted, and does not show that size by itself moves the selection."
        )
    if mixed:
        mixed[0] += f" Pooled, the correlation lies above zero in {labels('rho', 1)}, below it in {labels('rho', -1)}."
    apart = _apart(study)
    if apart:
        lines.append(
            f"Classes differ in {_of(list(apart), total)}, where the intervals of two of them do not meet: there the "
            "mean over classes hides what the table class by class shows."
        )
    last = study.units[-1]
    return [*lines, *mixed, _last_unit(last, apart.get(last.unit.label, ""))]


def _turns(one: Estimate, other: Estimate) -> bool:
    """Whether both leave out zero, on different sides."""
    return one.sign * other.sign < 0


def _apart(study: ScaleStudy) -> dict[str, str]:
    """Units in which two classes have intervals that do not meet, each with the two."""
    result = {}
    for number, unit in enumerate(study.units):
        rhos = [(c.name, c.rho[number]) for c in study.by_class if np.isfinite(c.rho[number].low)]
        if not rhos:
            continue
        least, most = min(rhos, key=lambda each: each[1].high), max(rhos, key=lambda each: each[1].low)
        if least[1].high < most[1].low:
            result[unit.unit.label] = f"{least[0]} has {least[1]}, {most[0]} {most[1]}"
    return result


def _of_mixing(study: ScaleStudy) -> list[str]:
    """How far size is the class, where classes differ in it."""
    if not study.explained >= _MIXED:
        return []
    nearly = "Size is nearly the class here: the" if study.explained >= _NEARLY else "The"
    return [
        f"{nearly} class explains {study.explained:.0%} of the variance of the sizes' ranks, so figures that are "
        "pooled over classes mix the two."
    ]


def _by_chance(units: int) -> str:
    """How often an interval by itself errs, for those who count units."""
    return (
        f"Each interval is by itself: where nothing moved, {0.05 * units:.1f} of {units} would be counted on average."
    )


def _last_unit(unit: UnitScale, apart: str) -> str:
    e = unit.within
    assert e is not None
    if apart:
        verdict = f"but classes differ: {apart}"
    elif max(abs(e.low), abs(e.high)) < _WEAK:
        verdict = "so hardly one either"
    elif e.sign:
        verdict = "so a pattern is there"
    else:
        verdict = "which leaves it open"
    return (
        f"The paper finds no pattern in its last unit. Here {unit.unit.label} has a rank correlation of {e} within "
        f"classes, {verdict}."
    )


def of_classes(selected: Selected) -> list[str]:
    """Which classes lean most to one side of the mean of all images."""
    lines = []
    means = {unit.label: float(mean) for unit, mean in zip(selected.units, selected.at_zoom.mean[0], strict=True)}
    for row, score in selected.most_different(3):
        e, mean = row.preference[0], means[row.unit]
        apart = Estimate(e.value - mean, e.low - mean, e.high - mean)
        lines.append(
            f"{row.name} ({row.n:,} images) leans more to the {'larger' if score > 0 else 'smaller'} kernels in "
            f"{row.unit} than the mean of all images does: {_fine(apart)}, which is {abs(score):.1f} of an image's "
            f"standard deviations{'' if apart.sign else ' and may be nothing'}."
        )
    return lines


def _fine(e: Estimate) -> str:
    """A small figure and its interval, of which two digits at least say something."""
    known = [abs(end) for end in (e.value, e.low, e.high) if np.isfinite(end)]
    digits = max(2, 1 - math.floor(math.log10(max(*known, 1e-12))))
    figure = f"{e.value:+.{digits}f}"
    return f"{figure} (no interval)" if np.isnan(e.low) else f"{figure} [{e.low:+.{digits}f}, {e.high:+.{digits}f}]"


def of_causal(study: CausalStudy) -> list[str]:
    """What each replacement of all units costs."""
    lines = [f"As it is, the network has {study.top1.value:.1%} top-1 on these {study.n:,} images."]
    meaning = {
        "frozen": "With every unit frozen to its mean selection, so that no image is treated otherwise than another",
        "shuffled": "With the selection of another image",
        "smallest kernel": "With the smallest kernel alone",
        "largest kernel": "With the largest kernel alone",
    }
    for e in study.effects:
        if e.unit != ALL:
            continue
        change = f"{100 * e.change.value:+.1f} points [{100 * e.change.low:+.1f}, {100 * e.change.high:+.1f}]"
        verdict = "" if e.change.sign else ", which may be nothing"
        lines.append(f"{meaning[e.what]}: {change}{verdict}; {e.flipped:.1%} of the predictions change.")
    single = [e for e in study.effects if e.unit != ALL]
    names = ", ".join(e.unit for e in single if e.change.sign < 0)
    lines.append(f"Frozen one by one, units that cost accuracy: {names or 'none'}. {_by_chance(len(single))}")
    return lines


def of_fields(study: FieldStudy, growths: Sequence[Growth]) -> list[str]:
    """How the selection changes what a neuron sees, and whether that follows the object."""
    labels = list(dict.fromkeys(field.label for field in study.fields))
    small, chosen, large = (study.of(labels[-1], how).radius.value for how in (SMALLEST, CHOSEN, LARGEST))
    lines = [
        f"In the last unit, {labels[-1]}, a neuron in the centre is moved by pixels within {chosen:.1f} px (root mean "
        f"square) on average of {study.n:,} images; {small:.1f} px if every unit took its smallest kernel alone, "
        f"{large:.1f} px with the largest."
    ]
    if growths:
        lines.append(f"Within a class, {_of_growth([(g.label, g.chosen_within) for g in growths])}.")
        frozen = [(g.label, g.fixed_within) for g in growths]
        if any(e.sign for _, e in frozen):
            lines.append(
                f"With the selection frozen to its mean, {_of_growth(frozen)}: that part is not the selection's doing, "
                "but that of the pixels which the ReLUs let through."
            )
        elif any(g.chosen_within.sign for g in growths):
            lines.append("With the selection frozen to its mean, neither is seen in any unit.")
    return lines


def _of_growth(growths: Sequence[tuple[str, Estimate]]) -> str:
    """In which units the field grows with the object, and in which it shrinks."""
    up, down = (_of([label for label, e in growths if e.sign == sign], len(growths)) for sign in (1, -1))
    return f"the field grows with the object's true size in {up}, and shrinks in {down}"


def _of(labels: Sequence[str], total: int) -> str:
    if total == 1:
        return "the one unit" if labels else "no unit at all"
    if len(labels) in (0, total):
        return f"all {total} units" if labels else f"none of the {total} units"
    return f"{len(labels)} of {total} units ({', '.join(labels)})"
