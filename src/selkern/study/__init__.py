"""Studies: networks compared by training each of them on the same images in the same order, several times."""
