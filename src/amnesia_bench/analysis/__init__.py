"""Why recall is lost: exact measurements of the gradients and attention of softmax layers."""

# Defaults of `amnesia analyze`: tokens per text, and the largest distance that is measured.
TOKENS, MAX_DISTANCE = 1024, 512
