"""Triton kernels and their launchers, one file or folder per op, no autograd. Imported as `slap_fast.kernels`."""
