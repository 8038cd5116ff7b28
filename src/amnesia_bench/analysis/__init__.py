"""Why it happens: where gradients and attention of softmax layers reach, measured exactly."""
