"""The engine of calibration: it streams the batches through the model and processes the weights layer by layer."""
