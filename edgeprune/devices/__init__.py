"""What is known of a device: its profile, its bounds, and the sensors of the one at hand."""
