"""Inference: expresses every axis of every value of a function in the algebra of axes."""
