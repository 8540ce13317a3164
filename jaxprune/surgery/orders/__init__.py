"""Orders of units: which groups may be reordered, and which order suits an N:M pattern."""
