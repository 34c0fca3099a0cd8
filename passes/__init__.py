"""Passes over Graph IR and the analyses they use."""
