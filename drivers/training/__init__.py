"""Training: objectives, methods, the loop with its checkpoints, and the worker that runs them."""
