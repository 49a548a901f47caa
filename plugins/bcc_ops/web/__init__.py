"""The pages behind the UI's tabs: who may see them, what they read, and within which time."""
