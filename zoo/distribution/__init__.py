"""Training on several devices: the scope `zoo.strategy`, one module a backend, and processes started for it."""
