"""What was measured: scores in memory and on disk, what failed, and a run directory that holds both."""
