"""The report of one bundle: its sections, written as HTML, Markdown, JSON and CSV."""
