"""Why recall is lost: exact measurements of the gradients and attention of softmax layers."""
