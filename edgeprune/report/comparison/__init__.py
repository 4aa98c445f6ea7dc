"""Several runs beside each other, and the gate against a stored baseline."""
