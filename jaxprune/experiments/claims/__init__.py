"""The experiment of `jaxprune claims`: what pruning articles say, point by point."""
