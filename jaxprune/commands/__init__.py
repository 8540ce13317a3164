"""The run of a command: its folder, which one process has at a time, and the signals that end it."""
