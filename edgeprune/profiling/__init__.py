"""Measure dense and pruned beside each other, estimate where no device is at hand, and say why time is lost."""
