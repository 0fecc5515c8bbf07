"""The API server: objects, their rules, and HTTP."""
