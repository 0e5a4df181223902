"""Triton kernels, one file per op: a kernel and its launcher, no autograd. Imported as `slap_fast.kernels`."""
