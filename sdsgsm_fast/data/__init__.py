"""The embedded photographs and the classifier of them."""
