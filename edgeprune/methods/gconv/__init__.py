"""GConv (paper 002): dense groups that hold the most important kernels."""
