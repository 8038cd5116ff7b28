"""Publish an experiment: its stages, table rows and reports as runs of a tracking service.

Everything is read from the store and from the report's files, so it can be published at any time.
"""
