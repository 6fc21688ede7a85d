"""Every figure of the README comes from a program in this folder."""
