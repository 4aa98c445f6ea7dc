"""Exporters: one module a format, imported as edgeprune.exporters."""
