"""Run folders, read and written; logs and references of other runs and programs."""
