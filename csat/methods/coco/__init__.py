"""CoCo DistillNet: the method, and its first stage, which trains the paraphrasers."""
