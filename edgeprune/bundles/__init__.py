"""The bundle: the folder that edgeprune hands out."""
