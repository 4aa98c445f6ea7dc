"""A method applied to a network: what it may look at, what comes out, and its place in a bundle."""
