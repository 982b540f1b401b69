"""A drive that fails as Google Drive's mount does: a real file system in user space, with faults by script."""
