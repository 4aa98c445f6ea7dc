"""The methods that choose filters by a criterion, at once or softly while the network trains (paper 004)."""
