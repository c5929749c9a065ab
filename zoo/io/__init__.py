"""What is read and written: files, cards, model files, images, tensor files."""
