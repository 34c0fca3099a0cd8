"""The two intermediate representations and what they share."""
