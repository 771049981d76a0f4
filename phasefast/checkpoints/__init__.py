"""Readers of checkpoints and the order of their steps."""

from .ahead import read_ahead
from .entries import by_only_file, weights_files
from .fingerprint import constants_of, file_hash, state_hash, weights_hash
from .hub import SCHEME, Revision, as_revision
from .loading import check_copies, load_into
from .ordering import find_checkpoints, order_checkpoints
from .reading import Reader, read_state_dict

__all__ = [
    "SCHEME",
    "Reader",
    "Revision",
    "as_revision",
    "by_only_file",
    "check_copies",
    "constants_of",
    "file_hash",
    "find_checkpoints",
    "load_into",
    "order_checkpoints",
    "read_ahead",
    "read_state_dict",
    "state_hash",
    "weights_files",
    "weights_hash",
]
