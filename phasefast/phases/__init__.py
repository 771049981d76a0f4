"""What a loss curve shows: minimum, phases, stop window; those of a run or of several runs; the best checkpoint."""
