"""Every target with every number of threads, each in a process of its own, and what a bundle keeps of it."""
