"""Readers of checkpoints and the order of their steps."""

from .ahead import read_ahead
from .fingerprint import file_hash, state_hash
from .loading import load_into
from .steps import order_checkpoints, parse_step
from .torch_files import read_state_dict

__all__ = ["file_hash", "load_into", "order_checkpoints", "parse_step", "read_ahead", "read_state_dict", "state_hash"]
