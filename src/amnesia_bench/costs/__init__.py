"""Estimate parameters, FLOPs, bytes and hours of training and inference, without torch."""
