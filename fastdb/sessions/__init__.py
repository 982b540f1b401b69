"""Sessions: folders on disk, their record, lease, events and file hashes."""
