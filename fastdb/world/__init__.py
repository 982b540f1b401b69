"""The drawn world that `mini` was trained on, and the network that reads its images."""
