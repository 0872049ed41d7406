"""Dense k x k convolutions as products of real Fourier coefficients."""
