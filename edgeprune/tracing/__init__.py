"""From an ordinary model to its layers and the coupled sets of its channels."""
