"""The latency of a network on a device that is not here, from its profile."""
