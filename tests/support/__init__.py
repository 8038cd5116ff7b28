"""Helpers of the tests: small models, checkpoints, data, fakes."""
