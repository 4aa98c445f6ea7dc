"""The plan, and all that follows from a plan and a graph alone."""
