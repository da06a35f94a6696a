"""One resumable training loop; wings give it a loss."""
