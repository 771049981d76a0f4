"""What a loss curve says: minimum, phases, stop window; those of a run, of several runs, and the best checkpoint."""
