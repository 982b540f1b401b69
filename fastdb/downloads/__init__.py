"""What brings a base model onto this machine: a name, an address, a download that survives, a place to keep it."""
