"""Reading models into Graph IR."""
