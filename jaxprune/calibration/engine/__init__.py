"""The engine of calibration: a model with its batches opened as a stream, and its weights layer by layer."""
