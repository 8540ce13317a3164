"""Evaluation: the analysed function is run again: small, masked, watched, or with its constants folded."""
