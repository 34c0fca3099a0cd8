"""Passes over Graph IR, one file each."""
