"""Installation of Theano and of the libraries of CUDA, and checks of this machine."""
