"""The experiment of `jaxprune compare`: recipes at several sparsities, side by side."""
