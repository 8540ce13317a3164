"""Inference: a place in the algebra of axes for every axis of every value of a function."""
