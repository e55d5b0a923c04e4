"""One file an operation: the plain-torch reference beside the fast version, and its autograd wrapper."""
