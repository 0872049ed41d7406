"""The sheet of ``selkern data check``: images as training with the same flags would show them to the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from selkern.cli_options import DataCheckOptions


def write_sheet(options: DataCheckOptions, path: Path, *, cut: bool = True) -> list[str]:
    """Write the sheet; how images became inputs, and remarks on that, a line each.

    Args:
        cut: whether missing splits are cut off, as `open_source` has it.
    """
    from selkern.data.check import settled_levels
    from selkern.data.levels import parse_levels, show_levels
    from selkern.data.sheet import draw_sheet
    from selkern.data.sources import open_source
    from selkern.files import write_atomic
    from selkern.train.defaults import Asked, choose_defaults

    asked = Asked(
        data=options.source,
        model=options.model,
        weights=options.weights,
        image_size=options.image_size,
        resize=options.resize,
        table=options.table,
    )
    defaults = choose_defaults(asked, cut=cut)
    source = defaults.source or open_source(options.source)
    training = defaults.options.training
    if options.image_size is not None:
        training = replace(training, image_size=options.image_size)
    if options.eval_crop is not None:
        training = replace(training, eval_crop=options.eval_crop)
    chosen = replace(defaults.options, training=training)
    levels, _ = settled_levels(source, parse_levels(options.white_level or training.white_level))
    preprocess = replace(training.preprocess, levels=levels)
    said = defaults.input_line(chosen)
    colours = ", ".join(
        f"{name} {' '.join(f'{value:.3g}' for value in values)}"
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std))
    )
    if levels != "full":
        colours += f", white level {show_levels(levels)}"
    heading = f"{source.name}, as {chosen.model} is shown it"
    write_atomic(path, draw_sheet(source, preprocess, [heading, said, colours]))
    return [said, *(f"note: {note}" for note in defaults.input_notes(chosen))]
