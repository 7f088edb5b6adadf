"""C++ operators for CPUs, built on the machine that runs them."""
