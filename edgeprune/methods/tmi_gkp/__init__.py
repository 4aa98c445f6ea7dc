"""TMI-GKP: filters in groups as tickets vote, then the most distinct grouped kernels."""
