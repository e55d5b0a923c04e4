"""Records of conversations, preferences and questions: the ways in which files write them, and the one way that forms read."""
