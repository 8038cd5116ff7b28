"""Imported once by the server that training processes are forked from: imports take seconds."""

import torch

import tests.training_runs  # noqa: F401

torch.set_num_threads(1)
