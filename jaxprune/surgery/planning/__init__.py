"""Planning: which units are removed, and what that makes of parameters and optimizer states."""
