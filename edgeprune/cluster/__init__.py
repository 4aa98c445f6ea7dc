"""Run a split network, or whole copies of one, on several machines: workers, tensors between them, and what happens
when one of them dies."""
