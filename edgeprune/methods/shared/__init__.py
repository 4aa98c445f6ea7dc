"""What several methods share: criteria, clusters, which channels may go, and counts on a channel block."""
