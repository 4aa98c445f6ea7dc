"""Choose what each device computes of a network, and predict what comes of it."""
