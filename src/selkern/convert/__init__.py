"""Weights from elsewhere and to elsewhere: torch state dicts, timm, the authors' Caffe models, the Hugging Face Hub."""
