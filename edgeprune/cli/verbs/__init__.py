"""One module a verb: what it takes, its help, and what it prints."""
