"""Kernels of our own for the CPU, in C++, where MindSpore's are slow.

``source/`` is compiled once on each machine, when a kernel is first asked for (``library``). ``operators`` makes them
operators of MindSpore, and the other modules Cells with gradients. Who uses one has MindSpore's own operators for where
there is none: another device, another type, no compiler.
"""
