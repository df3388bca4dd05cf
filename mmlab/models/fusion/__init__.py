"""What makes one of several modalities, one file each."""
