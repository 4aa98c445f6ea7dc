"""The report's pictures, drawn as SVG."""
