"""From a pruned network to the files that are run: fold, export, lower, and hold each to what it should compute."""
