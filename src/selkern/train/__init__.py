"""Training: recipes, the loop, the state of a run, and the main job that ends in a report."""
