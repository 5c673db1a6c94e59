"""How sure: Gaussian posteriors around a trained network, and what they predict."""
