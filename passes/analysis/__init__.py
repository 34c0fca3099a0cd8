"""Facts about graphs that several passes need."""
