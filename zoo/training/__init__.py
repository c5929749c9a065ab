"""Everything between data and a trained model: optimizers, checkpoints, callbacks, the fast paths."""
