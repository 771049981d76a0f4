"""``PhaseTracker`` inside the trainers of other packages, each in a module that needs its package."""
