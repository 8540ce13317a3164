"""The experiments of the command line: their data, models, trainings and results."""
