"""Everything between data and a trained model: optimizers, checkpoints, callbacks, what recipes share."""
