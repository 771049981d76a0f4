"""What any module may need and nothing of the field is in: files, names, notices, progress, hooks, memory, time."""
