"""torch as a target, eager or compiled."""
