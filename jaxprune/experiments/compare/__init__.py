"""What `jaxprune compare` runs: recipes at several sparsities, side by side."""
