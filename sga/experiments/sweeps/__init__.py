"""Sweeps: fits of many configurations on several seeds, shared by workers."""
