"""What any module may need and is not specific to the field: files, names, notices, progress, hooks, memory, time."""
