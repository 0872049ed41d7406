"""The report of trained weights: evaluation, studies, figures and the sentences under them, as one page."""
