"""From a corpus to a trained model folder, with the Hugging Face Trainer."""
