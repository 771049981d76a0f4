"""Samples of data sets, tokens of sequences, and the targets that are decoded from them."""
