"""Shapes of figures as SVG text, and the figures of attention analyses."""
