"""Frames between nodes over zenoh: numbered, acknowledged, checked, and only from whom the configuration admits."""
