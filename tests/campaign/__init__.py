"""A campaign of faults: runs the project's commands, disturbs each once, and compares with undisturbed runs."""
