"""The one training loop, with the hooks of methods that work while it runs."""
