"""Build tables, figures and claims from cells, as Markdown, CSV, LaTeX, JSON, SVG and HTML."""
