"""What the studies found and did not find, in plain words; only what their intervals carry."""

from __future__ import annotations

from collections.abc import Sequence

from selkern.analysis.causal import ALL, CausalStudy
from selkern.analysis.field import CHOSEN, LARGEST, SMALLEST, FieldStudy, Growth
from selkern.analysis.scale import ScaleStudy, UnitScale
from selkern.analysis.selection import Selected
from selkern.analysis.studies import Studies


def of_studies(studies: Studies) -> dict[str, list[str]]:
    """Lines per section of the report."""
    found: dict[str, list[str]] = {}
    if studies.selected is not None and studies.selected.class_rows():
        found["classes"] = of_classes(studies.selected)
    if studies.causal is not None:
        found["causal"] = of_causal(studies.causal)
    if studies.fields is not None:
        found["fields"] = of_fields(studies.fields, studies.growth)
    return found


def of_scale(study: ScaleStudy) -> list[str]:
    """What the study found and did not find, in plain words; only what its intervals carry."""
    units = study.units
    if study.kind == "zoom":
        up, down = ([u.unit.label for u in units if u.change.sign == sign] for sign in (1, -1))
        first, last = study.group_names[0], study.group_names[-1]
        return [
            f"Enlarging the centre from {first} to {last} moved the selection to the larger kernel in "
            f"{_of(up, len(units))}, and to the smaller one in {_of(down, len(units))}: the 95 % interval of the "
            "paired difference leaves out zero.",
            "The paper sees it move to the larger kernel in low and middle units, and no pattern in the last ones. "
            "Mind that enlarging a small image also blurs it.",
        ]
    plain, against = ([u.unit.label for u in units if u.rho is not None and u.rho.sign == sign] for sign in (1, -1))
    partial = [u.unit.label for u in units if u.partial is not None and u.partial.sign > 0]
    lines = [
        f"Larger objects draw more of the larger kernel in {_of(plain, len(units))}: "
        "the 95 % interval of the rank correlation lies above zero."
    ]
    if against:
        lines.append(f"The opposite, less of it for larger objects, is seen in {_of(against, len(units))}.")
    lines.append(
        "A larger object is also more ink. With the image's mean intensity removed, the correlation stays above "
        f"zero in {_of(partial, len(units))}."
    )
    return [*lines, _last_unit(units[-1])]


def _last_unit(unit: UnitScale) -> str:
    assert unit.rho is not None
    agrees = abs(unit.rho.value) < 0.2
    return (
        f"The paper finds no pattern in its last unit. Here {unit.unit.label} has a rank correlation of {unit.rho}, "
        f"{'so hardly one either' if agrees else 'so a pattern is there'}."
    )


def of_classes(selected: Selected) -> list[str]:
    """Which classes lean most to one side."""
    lines = []
    for row, score in selected.most_different(3):
        side = "larger" if score > 0 else "smaller"
        lines.append(
            f"{row.name} ({row.n:,} images) leans to the {side} kernels in {row.unit}: {row.preference[0]}, which is "
            f"{abs(score):.1f} of an image's standard deviations from the mean of all."
        )
    return lines


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
    costly = [e for e in study.effects if e.unit != ALL and e.change.sign < 0]
    names = ", ".join(e.unit for e in costly)
    lines.append(f"Frozen one by one, units that cost accuracy: {names or 'none'}.")
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
        grows = [g.label for g in growths if g.chosen.sign > 0]
        fixed = [g.label for g in growths if g.fixed.sign > 0]
        lines.append(f"The field grows with the object's true size in {_of(grows, len(growths))}.")
        lines.append(
            f"With the selection frozen to its mean it still does in {_of(fixed, len(growths))}: that part is not the "
            "selection's doing, but that of the pixels which the ReLUs let through."
        )
    return lines


def _of(labels: Sequence[str], total: int) -> str:
    if total == 1:
        return "the one unit" if labels else "no unit at all"
    if len(labels) in (0, total):
        return f"all {total} units" if labels else f"none of the {total} units"
    return f"{len(labels)} of {total} units ({', '.join(labels)})"
