"""`selkern bench`: what our code costs beside timm's, the article's, and the bare convolutions."""
