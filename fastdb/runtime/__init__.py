"""Where am I: folders of this host, its device, its free space."""
