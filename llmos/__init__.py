"""llmos: an operating system for LLM agents."""
