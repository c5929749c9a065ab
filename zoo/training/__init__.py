"""What training recipes share: flags, run folders, optimizers, losses, schedules, callbacks, checkpoints."""
