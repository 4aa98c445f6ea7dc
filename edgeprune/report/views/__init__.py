"""What pictures show, as numbers."""
