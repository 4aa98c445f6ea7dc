"""Input and output below everything else: files, arrays, the user's own Python, figures in words, progress."""
