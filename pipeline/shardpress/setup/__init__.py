"""Installation of Theano and of the libraries of CUDA, and checks of this machine, with the standard library only."""
