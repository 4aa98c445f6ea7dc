"""Flags that several verbs share; each group gives the pipeline's own options."""
