"""What trainings and answers take: parameters, FLOPs, bytes, hours. Needs no torch."""
