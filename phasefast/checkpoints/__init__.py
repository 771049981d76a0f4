"""Readers of checkpoints and the order of their steps."""

from .steps import order_checkpoints, parse_step
from .torch_files import load_into, read_state_dict

__all__ = ["load_into", "order_checkpoints", "parse_step", "read_state_dict"]
