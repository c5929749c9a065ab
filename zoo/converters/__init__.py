"""Published weights in and out of the zoo's models, one module a source format: state dict <-> state dict."""
