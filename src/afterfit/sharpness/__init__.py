"""How sharp is the minimum, said so that a rescaling of the network cannot change it."""
