"""Runs saved modules; needs numpy alone."""
