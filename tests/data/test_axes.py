"""Which axis of an output has the features."""

from __future__ import annotations

import torch
from torch import nn

from phasefast.data.axes import Widths, positions_last


def test_what_tells_where_the_positions_of_an_activation_are() -> None:
    convolving = Widths.of(nn.Sequential(nn.Conv1d(6, 16, 3), nn.GRU(16, 5, bidirectional=True), nn.Linear(10, 24)))
    embedding = Widths.of(nn.Sequential(nn.Embedding(50, 48), nn.Conv1d(48, 32, 3)))
    for widths, shape, found in (
        (convolving, (2, 16, 40), (True, False)),
        (convolving, (2, 40, 24), (False, False)),
        (convolving, (2, 40, 10), (False, False)),  # of both directions
        (convolving, (2, 16, 24), (False, True)),
        (convolving, (2, 16, 10), (False, True)),
        (convolving, (2, 40, 7), (False, True)),
        (embedding, (2, 32, 48), (False, True)),  # what the dropout of the embedding gives of 32 tokens
        (Widths.of(nn.Conv1d(1, 16, 3)), (2, 16, 1), (True, False)),
        (Widths.of(nn.Conv1d(3, 16, 3)), (2, 16, 3), (True, False)),
        (None, (2, 16, 40), (False, True)),
    ):
        assert positions_last(nn.ReLU(), torch.Size(shape), widths) == found
