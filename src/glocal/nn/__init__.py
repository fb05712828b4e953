"""Small networks shared by several chapters."""
