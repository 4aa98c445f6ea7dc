"""Dense and pruned in several runtimes at once, so that the runtimes can be held against each other."""
