"""Readers of checkpoints and the order of their steps."""

from .ahead import read_ahead
from .fingerprint import file_hash, state_hash
from .steps import order_checkpoints, parse_step
from .torch_files import load_into, read_state_dict

__all__ = ["file_hash", "load_into", "order_checkpoints", "parse_step", "read_ahead", "read_state_dict", "state_hash"]
