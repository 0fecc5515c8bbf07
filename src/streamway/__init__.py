"""Streamway: from a Hugging Face model id to a verified OpenAI endpoint on GKE."""
