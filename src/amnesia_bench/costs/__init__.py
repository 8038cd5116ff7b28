"""Cost estimates of training and inference: parameters, FLOPs, bytes, hours. Needs no torch."""
