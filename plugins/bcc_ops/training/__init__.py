"""From labelled images to a trained model."""
