"""The run of a command: its folder, which one process at a time may use, and the signals that end it."""
