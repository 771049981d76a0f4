"""The stages of a measurement; none imports another: ``decoding``, ``scoring`` and ``engine`` compose them."""
