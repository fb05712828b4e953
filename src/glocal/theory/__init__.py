"""Theory of learning."""
