"""The operations on arrays, one file each, and their implementations in torch and C++ (the kernels: `kernels/`)."""
