"""Which modules of a model are probed."""
