"""What a trained model is worth: scores of its answers, with their uncertainty."""
