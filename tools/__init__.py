"""The host programs which the Makefile calls."""
