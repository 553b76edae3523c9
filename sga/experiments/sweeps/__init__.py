"""Sweeps: many fits of one question, times seeds, shared by workers."""
