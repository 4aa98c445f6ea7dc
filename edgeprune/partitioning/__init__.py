"""Divide a network's groups over several devices, and run the parts."""
