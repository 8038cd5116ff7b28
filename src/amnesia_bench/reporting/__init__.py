"""From cells to the paper's tables, figures and claims: Markdown, CSV, LaTeX, JSON and HTML."""
