"""Measured orders of backends, one file a class of devices; ``planer.kernels.choice`` reads them."""
