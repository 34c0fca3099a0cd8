"""Rules that find in what exporters write out the operator it stands for. One file for a kind of operator."""
