"""Code generators for Loop IR."""
