"""Share, adopt and import sessions: zips, folders, Google Drive links, the classic notebook."""
