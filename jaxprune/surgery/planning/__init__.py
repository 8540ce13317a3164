"""Planning: which units are removed, and the small parameters and optimizer states that follow from it."""
