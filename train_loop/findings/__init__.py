"""What is found out about a trained model, and what people look at."""
