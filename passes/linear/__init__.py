"""Linear operators on channels and windows: the algebra behind merging the branches of a network."""
