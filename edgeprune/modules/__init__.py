"""The torch modules that edgeprune puts into a network."""
