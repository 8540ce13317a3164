"""Evaluation: the analysed function run anew, small, masked, watched or with its constants folded."""
